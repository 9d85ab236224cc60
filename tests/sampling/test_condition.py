"""Conditions of any kind: how many samples they are for, parts of them, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from disa_framework.sampling.condition import cycled, digest, in_turn, place, size, take


class Named(NamedTuple):
    text: list[str]
    speaker: Tensor


@dataclass(frozen=True)
class Spoken:
    text: list[str]
    speaker: Tensor


TEXTS = ["a cat", "the moon", "two dogs", "a cat"]
NUMBERS = torch.tensor([3, 1, 4, 1])
CONDITIONS: dict[str, Any] = {
    "labels": NUMBERS,
    "vectors": torch.arange(12.0).view(4, 3),
    "texts": TEXTS,
    "sequences": [torch.arange(length) for length in (2000, 1, 5, 1)],
    "a dictionary": {"text": TEXTS, "speaker": NUMBERS},
    "a nested dictionary": {"text": TEXTS, "voice": {"pitch": NUMBERS, "tempo": (NUMBERS, NUMBERS + 1)}},
    "a tuple": (TEXTS, NUMBERS),
    "a named tuple": Named(TEXTS, NUMBERS),
    "a dataclass": Spoken(TEXTS, NUMBERS),
}
ANY = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)


@ANY
def test_it_is_for_as_many_samples_as_each_of_its_parts(condition: Any) -> None:
    assert size(condition) == 4
    assert size(take(condition, range(1, 3))) == 2
    assert size(take(condition, [])) == 0


@ANY
def test_parts_of_it_are_of_its_kind_and_in_the_order_asked_for(condition: Any) -> None:
    some = take(condition, [3, 0, 0])
    assert type(some) is type(condition)
    assert digest(take(some, [1])) == digest(take(some, [2])) == digest(take(condition, [0]))
    assert digest(take(some, [0])) == digest(take(condition, range(3, 4)))
    assert digest(take(condition, range(4))) == digest(take(condition, [0, 1, 2, 3])) == digest(condition)


@ANY
def test_it_begins_anew_when_it_is_used_up(condition: Any) -> None:
    assert digest(cycled(condition, 6)) == digest(take(condition, [0, 1, 2, 3, 0, 1]))
    assert digest(cycled(condition, 3)) == digest(take(condition, range(3)))


@ANY
def test_tensors_go_to_the_device_and_texts_stay(condition: Any) -> None:
    moved = place(condition, torch.device("meta"))
    assert type(moved) is type(condition) and size(moved) == 4
    tensors = [part for part in flat(moved) if isinstance(part, Tensor)]
    assert all(tensor.is_meta for tensor in tensors) and len(flat(moved)) == len(flat(condition))
    assert digest(place(condition, torch.device("cpu"))) == digest(condition)
    assert place(None, torch.device("meta")) is None


def flat(condition: Any) -> list[Any]:
    """Its parts that have none."""
    if isinstance(condition, Spoken):
        return [condition.text, condition.speaker]
    if not isinstance(condition, dict | tuple | list) or condition == TEXTS:
        return [condition]
    parts = condition.values() if isinstance(condition, dict) else condition
    return [leaf for part in parts for leaf in flat(part)]


def test_digests_tell_conditions_apart() -> None:
    swapped = dict(reversed(CONDITIONS["a dictionary"].items()))
    assert digest(swapped) == digest(CONDITIONS["a dictionary"])
    long = [torch.zeros(5000), torch.zeros(5000)]
    long[1][2500] = 1  # which is not printed
    assert digest(long) != digest([long[0], long[0]])
    alike = [CONDITIONS["a tuple"], CONDITIONS["a named tuple"]]
    others = [value for name, value in CONDITIONS.items() if name not in ("a named tuple", "a dataclass")]
    more = [None, NUMBERS.int(), NUMBERS.float(), NUMBERS[:, None], TEXTS[:3], {"text": TEXTS, "voice": NUMBERS}]
    assert len({digest(condition) for condition in (*others, *more)}) == len(others) + len(more)
    assert digest(alike[0]) == digest(alike[0])


@pytest.mark.parametrize("kind", [dict, tuple, Named, Spoken])
def test_parts_for_unequal_numbers_are_refused(kind: Any) -> None:
    parts = {"text": TEXTS, "speaker": NUMBERS[:3]}
    condition = tuple(parts.values()) if kind is tuple else kind(**parts)
    with pytest.raises(ValueError, match=r"same number of samples, got .*4.*3"):
        size(condition)


@pytest.mark.parametrize("condition", [{}, {"voice": {}}], ids=str)
def test_a_condition_without_parts_is_refused(condition: Any) -> None:
    with pytest.raises(ValueError, match="without parts"):
        size(condition)


def test_values_come_in_turn() -> None:
    assert in_turn([3, 7], 5) == [3, 7, 3, 7, 3]
    assert in_turn(TEXTS, 2) == TEXTS[:2] and in_turn(TEXTS, 0) == []
    with pytest.raises(ValueError, match="at least one class or prompt"):
        in_turn([], 2)
