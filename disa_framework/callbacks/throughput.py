"""How long an image takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Times predict batches, decoder included and device synchronised.

    The first batch warms up and does not count, unless it is the only one.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, float]] = []
        self._start = 0.0

    @property
    def seconds_per_image(self) -> float | None:
        """Of this process; `None` if it has drawn nothing."""
        counted = self.batches[1:] or self.batches
        images = sum(count for count, _ in counted)
        return sum(seconds for _, seconds in counted) / images if images else None

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start = _now(pl_module.device)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append((len(batch.indices), _now(pl_module.device) - self._start))


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
