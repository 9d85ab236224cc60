"""What to draw: the samples of a run, in batches that do not depend on ranks or restarts.

A batch is a unit: sample `i` always falls into batch `i // batch_size`, whichever rank draws it and whether or
not the run was killed before. Rounding depends on who shares a batch, so this makes files equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import cycle, islice
from typing import NamedTuple, TypeVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disa_framework.models.base import Condition

T = TypeVar("T")


def in_turn(values: Sequence[T], count: int) -> list[T]:
    """What each of `count` samples is asked to be: sample `i` has `values[i % len(values)]`."""
    if not values:
        raise ValueError("nothing to draw in turn: give at least one class or prompt")
    return list(islice(cycle(values), max(0, count)))


def cycled(condition: Condition, count: int) -> Condition:
    """The first `count` labels or prompts, from the beginning again when they are used up."""
    if not isinstance(condition, Tensor):
        return in_turn(condition, count)
    return condition[torch.arange(count) % len(condition)]


class Request(NamedTuple):
    """Samples to draw together.

    Attributes:
        indices: `[B]` int64, their places in the run.
        condition: `[B]` int64 class labels, or `B` prompts, or `None` for unconditional images.
    """

    indices: Tensor
    condition: Condition | None


class _Requests(Dataset[Request]):
    """Whole batches as items, so that a distributed sampler hands out whole batches."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> Request:
        return self.requests[place]


class RequestData(LightningDataModule):
    """The requests of a run, for prediction.

    Args:
        num_images: samples of the run.
        condition: class labels or prompts of all of them; `None` draws unconditional images.
        batch_size: samples drawn together.
        finished: tells which samples exist already. Batches that are complete are skipped. Asked once all
            ranks have arrived and before any draws, so that they agree.
    """

    def __init__(
        self,
        num_images: int,
        condition: Condition | None = None,
        batch_size: int = 64,
        finished: Callable[[], Collection[int]] = tuple,
    ) -> None:
        super().__init__()
        if num_images < 1 or batch_size < 1:
            raise ValueError(
                f"need num_images >= 1 and batch_size >= 1, got num_images={num_images}, batch_size={batch_size}"
            )
        if condition is not None and len(condition) != num_images:
            raise ValueError(f"{num_images} images need as many labels or prompts, got {len(condition)}: see in_turn")
        self.num_images, self.condition, self.batch_size, self.finished = num_images, condition, batch_size, finished
        self.pending: list[Request] = []

    def setup(self, stage: str) -> None:
        done = frozenset(self.finished())
        starts = range(0, self.num_images, self.batch_size)
        batches = [range(start, min(start + self.batch_size, self.num_images)) for start in starts]
        self.pending = [self._request(places) for places in batches if not done.issuperset(places)]
        # Lightning refuses a rank without work; one that would have none draws a batch that another draws too.
        ranks = self.trainer.world_size if self.trainer else 1
        self.pending += self.pending[:1] * (ranks - len(self.pending))

    def predict_dataloader(self) -> DataLoader[Request]:
        return DataLoader(_Requests(self.pending), batch_size=None)

    def transfer_batch_to_device(self, batch: Request, device: torch.device, dataloader_idx: int) -> Request:
        return batch  # what is asked for is checked: on the device that would wait for the batch before

    def _request(self, places: range) -> Request:
        asked = None if self.condition is None else self.condition[places.start : places.stop]
        return Request(torch.tensor(places), asked)
