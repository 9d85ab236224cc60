"""What samples are asked to be: class labels `[B]`, `B` prompts, or whatever a model defines.

A condition is a tensor, a list, a dictionary or tuple or dataclass of conditions for the same samples, or any object
with a length, slices and `to(device)`. `None` asks for unconditional samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from disa_framework.runtime.devices import bring

Condition = Any

T = TypeVar("T")

MOST_SAMPLES = 10_000_000
"""Of a run: more is a slip of the pen, and would take all memory."""


def size(condition: Condition) -> int:
    """How many samples it is for.

    Raises:
        ValueError: if its parts are for different numbers, or it has none.
    """
    if not _is_compound(condition):
        return len(condition)
    counts = {name: size(part) for name, part in _parts(condition).items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"the parts of a condition must be for the same number of samples, got {counts}")
    return next(iter(counts.values()))


def take(condition: Condition, places: Sequence[int]) -> Condition:
    """The condition of the samples at some places, which may come several times."""
    if _is_compound(condition):
        return _map(condition, lambda part: take(part, places))
    if isinstance(condition, Tensor):
        return condition[torch.tensor(list(places), dtype=torch.int64, device=condition.device)]
    if isinstance(places, range) and places.step == 1:
        return condition[places.start : places.stop]
    return [condition[place] for place in places]


def place(condition: Condition, device: torch.device) -> Condition:
    """The condition on a device, without waiting for what that is at; texts stay where they are."""
    if condition is None:
        return None
    if _is_compound(condition):
        return _map(condition, lambda part: place(part, device))
    if isinstance(condition, list):
        return [place(part, device) for part in condition]
    if isinstance(condition, Tensor):
        return bring(condition, device)
    return condition.to(device) if hasattr(condition, "to") else condition


def cycled(condition: Condition, count: int) -> Condition:
    """The first `count` of a condition, from the beginning again when it is used up.

    Raises:
        ValueError: if it is for no sample, or there are to be more than anybody can mean.
    """
    available = size(condition)
    if not available:
        raise ValueError("nothing to draw in turn: give at least one class or prompt")
    check_count(count)
    return take(condition, range(count) if count <= available else [i % available for i in range(count)])


def check_count(samples: int) -> None:
    """Raises a ValueError for more samples than a run can have."""
    if samples > MOST_SAMPLES:
        raise ValueError(f"a run has up to {MOST_SAMPLES:,} samples, got {samples:,}: draw the rest with another seed")


def in_turn(values: Sequence[T], count: int) -> list[T]:
    """What each of `count` samples is asked to be: sample `i` has `values[i % len(values)]`."""
    if not values:
        raise ValueError("nothing to draw in turn: give at least one class or prompt")
    return list(islice(cycle(values), max(0, count)))


def digest(condition: Condition) -> str:
    """SHA-256 of what is asked for: the same for the same condition on any device."""
    hashed = hashlib.sha256()
    for text in _texts(condition):
        hashed.update(text)
    return hashed.hexdigest()


def _texts(condition: Condition) -> list[bytes]:
    if isinstance(condition, Tensor):
        return [f"{condition.dtype} {list(condition.shape)}".encode(), str(condition.tolist()).encode()]
    if _is_compound(condition):
        return [text for name, part in sorted(_parts(condition).items()) for text in (name.encode(), *_texts(part))]
    if isinstance(condition, list) and not all(isinstance(part, str) for part in condition):
        return [text for part in condition for text in (b"[", *_texts(part))]
    try:
        return [json.dumps(condition).encode()]
    except TypeError:
        return [repr(condition).encode()]


def _is_compound(condition: Condition) -> bool:
    if isinstance(condition, Mapping) or (is_dataclass(condition) and not hasattr(condition, "__len__")):
        return True
    return isinstance(condition, tuple) and any(not isinstance(part, str | int | float) for part in condition)


def _parts(condition: Condition) -> dict[str, Condition]:
    if isinstance(condition, Mapping):
        found = {str(name): part for name, part in condition.items()}
    elif isinstance(condition, tuple):
        found = {str(i): part for i, part in enumerate(condition)}
    else:
        found = {field.name: getattr(condition, field.name) for field in fields(condition)}
    if not found:
        raise ValueError("a condition without parts is for no sample")
    return found


def _map(condition: Condition, change: Callable[[Condition], Condition]) -> Condition:
    if isinstance(condition, Mapping):
        return {name: change(part) for name, part in condition.items()}
    if isinstance(condition, tuple):
        parts = [change(part) for part in condition]
        return type(condition)(*parts) if hasattr(condition, "_fields") else tuple(parts)
    return replace(condition, **{field.name: change(getattr(condition, field.name)) for field in fields(condition)})
