"""What to draw: the labels of a run's samples, in batches that do not depend on ranks or restarts.

A batch is a unit: sample `i` always falls into batch `i // batch_size`, whichever rank draws it and whether or
not the run was killed before. Rounding depends on who shares a batch, so this makes files equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class LabelBatch(NamedTuple):
    """Samples to draw together.

    Attributes:
        indices: `[B]` int64, their places in the run.
        labels: `[B]` int64 class labels, or `None` for unconditional images.
    """

    indices: Tensor
    labels: Tensor | None


class _Batches(Dataset[LabelBatch]):
    """Whole batches as items, so that a distributed sampler hands out whole batches."""

    def __init__(self, batches: Sequence[LabelBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> LabelBatch:
        return self.batches[place]


class LabelsData(LightningDataModule):
    """Labels for prediction: sample `i` has the label `labels[i % len(labels)]`.

    Args:
        num_images: samples of the run.
        labels: classes to draw in turn; `None` draws unconditional images.
        batch_size: samples drawn together.
        finished: tells which samples exist already. Batches that are complete are skipped. Asked once all
            ranks have arrived and before any draws, so that they agree.
    """

    def __init__(
        self,
        num_images: int,
        labels: Sequence[int] | None,
        batch_size: int = 64,
        finished: Callable[[], Collection[int]] = tuple,
    ) -> None:
        super().__init__()
        if num_images < 1 or batch_size < 1:
            raise ValueError(
                f"need num_images >= 1 and batch_size >= 1, got num_images={num_images}, batch_size={batch_size}"
            )
        if labels is not None and not labels:
            raise ValueError("labels is empty: give at least one class, or leave it out for all classes")
        self.num_images, self.labels, self.batch_size, self.finished = num_images, labels, batch_size, finished
        self.pending: list[LabelBatch] = []

    def setup(self, stage: str) -> None:
        done = frozenset(self.finished())
        starts = range(0, self.num_images, self.batch_size)
        batches = [range(start, min(start + self.batch_size, self.num_images)) for start in starts]
        self.pending = [self._batch(places) for places in batches if not done.issuperset(places)]
        # Lightning refuses a rank without work; one that would have none draws a batch that another draws too.
        ranks = self.trainer.world_size if self.trainer else 1
        self.pending += self.pending[:1] * (ranks - len(self.pending))

    def predict_dataloader(self) -> DataLoader[LabelBatch]:
        return DataLoader(_Batches(self.pending), batch_size=None)

    def _batch(self, places: range) -> LabelBatch:
        labels = None
        if self.labels is not None:
            labels = torch.tensor([self.labels[i % len(self.labels)] for i in places])
        return LabelBatch(torch.tensor(places), labels)
