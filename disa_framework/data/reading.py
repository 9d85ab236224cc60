"""Reading images on disk in Lightning's predict loop, in batches that do not depend on ranks or restarts.

Letters: `B` images in a batch, `c` channels, `h w` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disa_framework.data.requests import Request, RequestData, predictor
from disa_framework.data.workers import worker_options
from disa_framework.runtime.devices import bring
from disa_framework.sampling.condition import Condition

WORKERS = min(4, os.cpu_count() or 1)
_MOST_WORKERS = 1024


class ImageBatch(NamedTuple):
    """Images read together.

    Attributes:
        indices: `[B]` int64, their places in the set.
        pixels: uint8 `[B, c, h, w]`.
        condition: what they are, if that is known.
    """

    indices: Tensor
    pixels: Tensor
    condition: Condition | None


@dataclass(frozen=True)
class Reading:
    """How images on disk are read: by Lightning's predict loop, on all of its processes.

    Args:
        batch_size: images looked at together.
        num_workers: processes that read images, for each device.
        trainer: options of Lightning's trainer: devices, strategy.

    Raises:
        ValueError: numbers that are too small.
    """

    batch_size: int = 64
    num_workers: int = WORKERS
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.num_workers <= _MOST_WORKERS:
            given = f"{self.batch_size} and {self.num_workers}"
            raise ValueError(
                f"batch_size must be at least 1, and num_workers at least 0 and at most {_MOST_WORKERS}, got {given}"
            )

    def runner(self, *callbacks: Callback) -> Trainer:
        """The trainer whose predict loop reads."""
        return predictor({**self.trainer, "enable_model_summary": False}, *callbacks)

    @property
    def leads(self) -> bool:
        """Whether this process is the one of all that writes and prints."""
        return self.runner().is_global_zero


class ImageData(RequestData):
    """Images on disk, for prediction, in batches of `ImageBatch`.

    Args:
        read: gives the image at a place, uint8 `[c, h, w]`.
        count: how many there are.
        reading: in which batches.
        condition: what they are.
        finished: see `RequestData`.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        count: int,
        reading: Reading,
        condition: Condition | None = None,
        finished: Callable[[], Collection[int]] = tuple,
    ) -> None:
        super().__init__(count, condition, reading.batch_size, finished)
        self.read, self.num_workers = read, reading.num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Batches(self.pending, self.read), batch_size=None, **worker_options(self.num_workers))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch._replace(pixels=bring(batch.pixels, device))


class _Batches(Dataset[ImageBatch]):
    """Whole batches as items, so that a distributed sampler hands out whole batches."""

    def __init__(self, requests: Sequence[Request], read: Callable[[int], Tensor]) -> None:
        self.requests, self.read = requests, read

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> ImageBatch:
        indices, condition = self.requests[place]
        return ImageBatch(indices, torch.stack([self.read(i) for i in indices.tolist()]), condition)
