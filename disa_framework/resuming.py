"""What a run is, so that it is gone on with only by the same one.

The identity of a run is all that decides what it makes: model and tokenizer with their weights, condition, sampling
config, seed, and the batch size where a schedule decides for a batch. Sample folders, studies, calibration profiles and
cost models all keep it beside what they hold, or its digest in their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disa_framework import values
from disa_framework.files import write_json
from disa_framework.sampling.condition import Condition, digest
from disa_framework.sampling.config import SamplingConfig

RunIdentity = dict[str, Any]
"""Plain data by name."""


def identity(
    model: nn.Module,
    tokenizer: nn.Module,
    condition: Condition | None,
    sampling: SamplingConfig,
    seed: int,
    batch_size: int,
    **more: Any,
) -> RunIdentity:
    """That of a run.

    Args:
        model, tokenizer: are told by `digest_of`.
        condition: of all samples.
        sampling: settled.
        seed: of the run.
        batch_size: counts where the schedule decides for a batch.
        more: what else decides, as plain data.
    """
    return {
        "model": digest_of(model),
        "tokenizer": digest_of(tokenizer),
        "condition": digest(condition),
        "sampling": sampling.dump(),
        "seed": seed,
        **({"batch_size": batch_size} if sampling.schedule.adapts else {}),
        **more,
    }


def fingerprint(known: Mapping[str, Any]) -> str:
    """Eight letters for a file's name: the same for the same identity."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def differing(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Names of what is not as in an identity that was read from JSON, as text; empty if all is."""
    return ", ".join(_differing(known, json.loads(json.dumps(asked))))


def claim(manifest: Path, asked: RunIdentity, occupied: bool, what: str) -> None:
    """Binds a folder to what decides the files in it: writes the manifest, or compares with the one that there is.

    Args:
        manifest: a JSON file in the folder; what is compared is under `identity`.
        asked: of the run that is about to write.
        occupied: whether the folder holds files of a run.
        what: they are, for the message.

    Raises:
        ValueError: if it holds files of another run, or nothing tells of which.
    """
    if not manifest.exists() and not occupied:
        return write_json(manifest, {"identity": asked})
    if not manifest.exists():
        raise ValueError(f"{manifest.parent} holds {what} that nothing describes: choose another folder")
    try:
        known = dict(json.loads(manifest.read_text(encoding="utf-8"))["identity"])
    except (KeyError, TypeError, ValueError) as error:  # of JSON and of UTF-8, too
        raise ValueError(f"{manifest} is damaged: delete {manifest.parent}, or choose another folder") from error
    if names := differing(known, asked):
        raise ValueError(
            f"{manifest.parent} holds {what} made otherwise ({names} differ; see {manifest}): choose another folder, "
            "or delete it"
        )


def digest_of(module: nn.Module) -> str:
    """SHA-256 of what a module is: its classes, their plain attributes, and all weights and tables.

    Attributes whose names begin with an underscore do not count: they are for what changes results by rounding alone.
    A frozen network that is kept out of the module tree, as an attribute `network`, does.
    """
    hashed = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {key: values.dump(value) for key, value in vars(part).items() if key[0] != "_" and _is_plain(value)}
        plain.pop("training", None)
        hashed.update(f"{name} {values.path_of(_public(type(part)))} {json.dumps(plain, sort_keys=True)}".encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(_bytes(tensor))
    network = getattr(module, "network", None)
    if isinstance(network, nn.Module):
        hashed.update(digest_of(network).encode())
    return hashed.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return plain.numpy().data


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return all(map(_is_plain, vars(value).values()))
    return value is None or isinstance(value, bool | int | float | str)


def _public(kind: type[Any]) -> type[Any]:
    """The class that a linear layer is of, whatever multiplies it."""
    return nn.Linear if issubclass(kind, nn.Linear) else kind


def _differing(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    names = []
    for name in sorted({*known, *asked}):
        before, now = known.get(name), asked.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            names += [f"{name}.{part}" for part in _differing(before, now)]
        elif before != now:
            names.append(name)
    return names
