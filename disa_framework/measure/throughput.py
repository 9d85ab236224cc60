"""How long an image takes."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from disa_framework.measure.latency import Mark, mark, seconds


class Throughput(Callback):
    """Times predict batches, decoder included.

    CUDA devices note the time themselves, so that the host goes on to the next batch; others are waited for. The first
    batch warms up and does not count, unless it is the only one.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[int, Mark, Mark]] = []
        self._start: Mark = 0.0

    @property
    def seconds_per_image(self) -> float | None:
        """Of this process; `None` if it has drawn nothing. Waits until what it has drawn is there."""
        counted = self._batches[1:] or self._batches
        if not counted:
            return None
        return sum(seconds(start, end) for _, start, end in counted) / sum(count for count, _, _ in counted)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._start = mark(pl_module.device)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        self._batches.append((len(batch.indices), self._start, mark(pl_module.device)))
