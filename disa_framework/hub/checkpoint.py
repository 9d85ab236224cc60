"""Weights in files of every layout, and models that take them; our own layout is written here, too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from disa_framework.hub.diffusers import beside
from disa_framework.hub.layouts import TIED, find_weights, split
from disa_framework.hub.reading import FORMAT, METADATA, Weights, locate, read, some
from disa_framework.values import text

_PLAIN = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        layout: the kind of file, in words.
        weights: of the model.
        autoencoder: weights of an autoencoder that lies in the same file, as Harmon's may; else empty.
        model: `class_path` and `init_args` of the model, which a converted file carries; else `None`.
        options: arguments of a published model that files beside this one say, see `disa_framework.hub.diffusers`.
    """

    layout: str
    weights: Weights
    autoencoder: Weights = field(default_factory=dict)
    model: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a file or folder holds: `.safetensors`, a checkpoint of disa-fit, a published `.pth` or `.ckpt`, a folder
    of Hugging Face, whole or in shards.

    Averaged weights are taken where a file holds both, see `disa_framework.hub.layouts`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights, is damaged, wants code to be run, or holds NaN or infinite values.
    """
    path = locate(Path(path))
    content, model = read(path)
    layout, weights = ("converted file", content) if model else find_weights(content, path)
    weights, autoencoder = split(weights)
    together = {**weights, **autoencoder}
    if odd := [name for name, t in together.items() if not _is_plain(t)]:
        raise ValueError(
            f"{path} holds {some(odd)} as something else than plain numbers: save dense tensors of 16 bits or more"
        )
    if broken := [name for name, t in together.items() if not _is_finite(t)]:
        raise ValueError(f"{path} holds NaN or infinite values in {some(broken)}: training diverged")
    if found := beside(path):
        options, solver = found
        layout = f"folder of diffusers, drawn as published with {text(solver)}"
        return Checkpoint(layout, weights, autoencoder, model, options)
    return Checkpoint(layout, weights, autoencoder, model)


def load_into(model: nn.Module, path: str | Path) -> None:
    """Loads a file of any kind that `read_checkpoint` reads into a model that it has to fit exactly.

    Raises:
        FileNotFoundError, ValueError: as of `read_checkpoint` and `apply_weights`, or the file is of a model with
            another process.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint.model["init_args"] if checkpoint.model else checkpoint.options
    check_process(getattr(model, "made_with", {}), described, path)
    apply_weights(model, checkpoint.weights, path)


def check_process(own: Mapping[str, Any], described: Mapping[str, Any], source: str | Path) -> None:
    """Raises a ValueError if arguments of a model name another process than a file does; weights fit either."""
    asked, trained = own.get("process"), described.get("process")
    if isinstance(asked, str) and trained not in (asked, None):
        raise ValueError(
            f"{source} was trained with the process {trained}, not {asked}: give --model.process {trained}"
        )


def load_weights(path: str | Path) -> Weights:
    """The state dict of a model, from any file that `read_checkpoint` reads; it says what is raised."""
    return read_checkpoint(path).weights


def apply_weights(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Loads a state dict whose keys and shapes have to be exactly the model's.

    Raises:
        ValueError: naming the keys and shapes that differ.
    """
    if problems := misfit(model.state_dict(), state):
        raise ValueError(
            f"{source} does not fit the {type(model).__name__} of the configuration: {problems}. "
            "Give the configuration that the checkpoint was trained with."
        )
    model.load_state_dict(state)


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How a state dict differs from a model's own in keys, shapes and kinds of numbers, in words; empty if it fits."""
    problems = []
    if missing := [_shaped(k, own) for k in own if k not in state]:
        problems.append(f"it lacks {some(missing)}")
    if unknown := [_shaped(k, state) for k in state if k not in own]:
        problems.append(f"it has {some(unknown)}, which the model has not")
    both = [k for k in own if k in state]
    if shapes := [f"{_shaped(k, state)} for {list(own[k].shape)}" for k in both if state[k].shape != own[k].shape]:
        problems.append(f"it has other shapes: {some(shapes)}")
    if kinds := [f"{k} {state[k].dtype}" for k in both if state[k].is_floating_point() != own[k].is_floating_point()]:
        problems.append(f"it has other kinds of numbers: {some(kinds)}")
    return "; ".join(problems)


def write_checkpoint(path: Path, weights: Weights, model: Mapping[str, Any]) -> None:
    """Writes a converted file, which `load_model` reads without being told anything: whole, or not at all.

    Args:
        path: a `.safetensors` file.
        model: `class_path` and `init_args` of the model.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {METADATA: json.dumps({"format": FORMAT, **model})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # which safetensors would make the owner's alone
        save_file(_unshared(weights), temporary, metadata)
        temporary.chmod(mode)
        os.replace(temporary, path)
    except SafetensorError as error:  # as which it raises a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _unshared(weights: Weights) -> Weights:
    """Tensors that share no memory, without the one of Harmon's that `read_checkpoint` adds again."""
    tied = TIED[0] in weights and torch.equal(*(weights[name] for name in TIED))
    plain: Weights = {}
    places: set[int] = set()
    for name, tensor in weights.items():
        if tied and name == TIED[0]:
            continue
        dense = tensor.detach().contiguous()
        place = dense.untyped_storage().data_ptr()
        plain[name] = dense.clone() if place in places else dense
        places.add(place)
    return plain


def _is_plain(t: Tensor) -> bool:
    return t.layout == torch.strided and t.dtype in _PLAIN and not (t.is_meta or t.is_nested)


def _is_finite(t: Tensor) -> bool:
    """Whether there is no NaN and no infinity; a mask that is added to scores is made of 0 and minus infinity."""
    if not t.is_floating_point() or not t.numel():
        return True
    low, high = t.aminmax()  # which are NaN where any is, and take one pass without a copy
    return bool((low.isfinite() & high.isfinite()) or ((t == 0) | (t == -torch.inf)).all())


def _shaped(name: str, state: Mapping[str, Tensor]) -> str:
    return f"{name} {list(state[name].shape)}"
