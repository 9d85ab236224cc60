"""Weights in files: reading every layout that holds them, without running code that they hold, and writing our own."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""A state dict."""

_METADATA = "disa_framework"  # under which a converted file says what it holds
_FORMAT = 1
_FOLDER = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
_LAYERS = {
    "model_ema": "published checkpoint, averaged weights (model_ema)",
    "state_dict": "state dict under state_dict",
    "model": "published checkpoint, weights as trained (model)",
}
_PREFIX = "model."
_ZIP = b"PK\x03\x04"  # what a zip archive begins with; its contents are told at its end
_TIED = ("llm.lm_head.weight", "llm.model.embed_tokens.weight")  # of Harmon; files hold one of them, or both
_BESIDE_WEIGHTS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        layout: the kind of file, in words.
        weights: of the model.
        autoencoder: weights of an autoencoder that lies in the same file, as Harmon's may; else empty.
        model: `class_path` and `init_args` of the model, which a converted file carries; else `None`.
    """

    layout: str
    weights: Weights
    autoencoder: Weights = field(default_factory=dict)
    model: dict[str, Any] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a file or folder holds: `.safetensors`, a Lightning checkpoint, a published `.pth` or `.ckpt`, a folder
    of Hugging Face, whole or in shards.

    Averaged weights are taken where a file holds both: `model_ema` of a published checkpoint; a Lightning
    checkpoint written with `EMAWeightAveraging` has them in its `state_dict`. Large files are mapped, not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights, is damaged, wants code to be run, or holds NaN or infinite values.
    """
    path = _file(Path(path))
    try:
        content, model = _read_shards(path) if path.suffix == ".json" else _read(path)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # what is not a pickle makes the unpickler raise all kinds, of OSError too
        raise ValueError(f"{path} {_why_not(error)}") from error
    layout, weights = _state_dict(content, path)
    weights, autoencoder = _apart(weights)
    if broken := [name for name, t in {**weights, **autoencoder}.items() if not _is_finite(t)]:
        raise ValueError(f"{path} holds NaN or infinite values in {some(broken)}: training diverged")
    return Checkpoint("converted file" if model else layout, weights, autoencoder, model)


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
    """How a state dict differs from a model's own in keys and shapes, in words; empty if it fits."""
    problems = []
    if missing := [_shaped(k, own) for k in own if k not in state]:
        problems.append(f"it lacks {some(missing)}")
    if unknown := [_shaped(k, state) for k in state if k not in own]:
        problems.append(f"it has {some(unknown)}, which the model has not")
    if shapes := [
        f"{_shaped(k, state)} for {list(own[k].shape)}" for k in own if k in state and state[k].shape != own[k].shape
    ]:
        problems.append(f"it has other shapes: {some(shapes)}")
    return "; ".join(problems)


def write_checkpoint(path: Path, weights: Weights, model: dict[str, Any]) -> None:
    """Writes a converted file, which `load_model` reads without being told anything: whole, or not at all.

    Args:
        path: a `.safetensors` file.
        model: `class_path` and `init_args` of the model.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {_METADATA: json.dumps({"format": _FORMAT, **model})}
    tied = _TIED[0] in weights and torch.equal(*(weights[name] for name in _TIED))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(
            {k: t.detach().contiguous() for k, t in weights.items() if not (tied and k == _TIED[0])},
            temporary, metadata,
        )  # fmt: skip
        os.replace(temporary, path)
    except SafetensorError as error:  # as which it raises a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# --- reading files ----------------------------------------------------------------------------------------


def _file(path: Path) -> Path:
    """The file to begin with."""
    places = [path / name for name in _FOLDER] if path.is_dir() else [path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one with disa-fit, fetch one with disa-download, or give another path"
        )
    return found


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Content of a file, and what a converted one says of its model."""
    if path.suffix != ".safetensors":
        zipped = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            if not zipped and file.read(len(_ZIP)) == _ZIP:
                raise ValueError("it is cut short, fetch or copy it again")
        with torch.serialization.safe_globals([_stand_in(name) for name in _BESIDE_WEIGHTS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), None
    with safe_open(path, framework="pt") as tensors:
        metadata = tensors.metadata() or {}
        model = _described(metadata[_METADATA]) if _METADATA in metadata else None
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, model  # noqa: SIM118


def _read_shards(index: Path) -> tuple[Weights, None]:
    """The weights of all shards that an index of Hugging Face names."""
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    weights: Weights = {}
    for name in sorted(set(places.values())):
        shard = index.with_name(name)  # which takes no path, so that an index names files of its folder alone
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not there: fetch the whole folder")
        weights |= _read(shard)[0]
    if lost := sorted(places.keys() - weights.keys()):
        raise ValueError(f"its files lack {some(lost)}")
    return weights, None


def _described(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if content["format"] > _FORMAT:
        raise ValueError(f"it is of format {content['format']}, from a newer version of disa_framework")
    return {"class_path": str(content["class_path"]), "init_args": dict(content["init_args"])}


class _Ignored:
    """Stands in for what published checkpoints hold beside tensors, such as the options of a training run."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(name: str) -> type[_Ignored]:
    """A class that the unpickler takes for the one of that name: nothing of the real one is made or run."""
    module, _, own = name.rpartition(".")
    return type(own, (_Ignored,), {"__module__": module})


def _why_not(error: Exception) -> str:
    """Why a file cannot be read."""
    asked = re.search(r"Unsupported (?:global|class|operand).*?(?:GLOBAL )?([\w.]+) was not", str(error))
    if asked:
        return (
            f"asks for {asked[1]}, and nothing that a file names is run: where you trust it, load it yourself and "
            "save the weights alone, torch.save(model.state_dict(), …)"
        )
    reason = str(error).splitlines()[0] if str(error) else ""
    return f"is damaged or not a checkpoint: {reason if ' ' in reason else f'{type(error).__name__} {reason}'}"


# --- finding the weights in what was read -----------------------------------------------------------------


def _state_dict(content: Any, path: Path) -> tuple[str, Weights]:
    """The layout, and the weights."""
    layer = next((k for k in _LAYERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
    state = content[layer] if layer else content
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path} holds no weights: expected a state dict, or one under {', '.join(_LAYERS)}")
    # The Lightning module keeps the model beside its tokenizer.
    own = {k.removeprefix(_PREFIX): t for k, t in state.items() if k.startswith(_PREFIX)}
    if layer == "state_dict" and own:
        return "checkpoint of disa-fit" + (", averaged weights" if "current_model_state" in content else ""), own
    return _LAYERS[layer] if layer else "state dict", state


def _apart(state: Weights) -> tuple[Weights, Weights]:
    """The model's weights, and those of an autoencoder beside them; what neither needs is left out."""
    if "mar.fake_latent" in state:  # Harmon
        autoencoder = {k.removeprefix("vae."): t for k, t in state.items() if k.startswith("vae.")}
        tied = {_TIED[0]: state[_TIED[1]]} if _TIED[1] in state else {}
        return tied | {k: t for k, t in state.items() if not k.startswith("vae.")}, autoencoder
    if "quant_conv.weight" in state:  # an autoencoder of latent diffusion, whose discriminator is in its loss
        return {k: t for k, t in state.items() if not k.startswith("loss.")}, {}
    return state, {}


def _is_finite(t: Tensor) -> bool:
    """Whether there is no NaN and no infinity; a mask that is added to scores is made of 0 and minus infinity."""
    if not t.is_floating_point() or not t.numel():
        return True
    low, high = t.aminmax()  # which are NaN where any is, and take one pass without a copy
    return bool((low.isfinite() & high.isfinite()) or ((t == 0) | (t == -torch.inf)).all())


# --- words ------------------------------------------------------------------------------------------------


def _shaped(name: str, state: Mapping[str, Tensor]) -> str:
    return f"{name} {list(state[name].shape)}"


def some(names: list[str], shown: int = 4) -> str:
    """The first of many names."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
