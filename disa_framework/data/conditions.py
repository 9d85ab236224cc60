"""Readers of conditions: what the samples of a run are asked to be, from options and files.

A model that is asked for something else brings a reader of its own: subclass `ConditionReader`, and give it to the
commands by its path, `--condition my_package.MyReader`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from disa_framework.data.prompts import read_prompts
from disa_framework.models.base import ARDiffusionModel
from disa_framework.sampling.condition import Condition, size

_COUNT, _EACH = 64, 4  # samples in all, and of each prompt, where nothing says how many


@dataclass(frozen=True)
class ConditionReader(ABC):
    """What the samples of a run are asked to be. Subclass as a frozen dataclass whose fields are its options."""

    @abstractmethod
    def read(self, model: ARDiffusionModel) -> Condition:
        """What is asked for in turn, see `disa_framework.sampling.condition`: sample `i` has the part `i` of it, and
        from the beginning again when it is used up.

        Raises:
            ValueError: if the model cannot be asked for this.
        """

    def count(self, condition: Condition, asked: int | None) -> int:
        """How many samples there are to be, of what was read: as many as it has, or as the user says.

        Raises:
            ValueError: if it cannot be as many.
        """
        return size(condition) if asked is None else asked

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The prompts that are drawn in turn, as objects with at least `prompt`; none for other conditions."""
        return []


@dataclass(frozen=True)
class Labels(ConditionReader):
    """Class labels in turn.

    Args:
        labels: the classes; all of the model's by default.
        each: samples of each class, class after class; otherwise the classes take turns sample by sample.

    Raises:
        ValueError: there are no classes, or they are no whole numbers.
    """

    labels: tuple[int, ...] | None = None
    each: int | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and (not self.labels or any(type(label) is not int for label in self.labels)):
            raise ValueError(f"labels must be the numbers of at least one class, got {list(self.labels)}")

    def read(self, model: ARDiffusionModel) -> Condition:
        if self.labels is None and not model.num_classes:
            raise ValueError("this model draws no classes: give --prompts FILE, or --condition, a reader of its own")
        labels = torch.tensor(range(model.num_classes) if self.labels is None else self.labels, dtype=torch.int64)
        return labels.repeat_interleave(self.each or 1)

    def count(self, condition: Condition, asked: int | None) -> int:
        if self.each is None:
            return _COUNT if asked is None else asked
        return _agreed(len(condition), asked, f"{len(condition) // self.each} classes with {self.each} images each")


@dataclass(frozen=True)
class Prompts(ConditionReader):
    """Prompts of a file in turn.

    Args:
        path: text, one a line, or GenEval's metadata (.jsonl).
        each: samples of each prompt; 4 where nothing says how many there are to be in all.
    """

    path: str
    each: int | None = None

    def read(self, model: ARDiffusionModel) -> Condition:
        return [prompt["prompt"] for prompt in self.prompts]

    def count(self, condition: Condition, asked: int | None) -> int:
        if self.each is None:
            return len(condition) * _EACH if asked is None else asked
        return _agreed(len(condition) * self.each, asked, f"{len(condition)} prompts with {self.each} images each")

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        return read_prompts(self.path)


def _agreed(count: int, asked: int | None, what: str) -> int:
    if asked not in (None, count):
        raise ValueError(f"{what} are {count} images, not {asked}: leave --num_images out")
    return count
