"""How long an image takes."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from disa_framework.measure.latency import now

Moment = float | torch.cuda.Event


class Throughput(Callback):
    """Times predict batches, decoder included.

    CUDA devices note the time themselves, so that the host goes on to the next batch; others are waited for. The first
    batch warms up and does not count, unless it is the only one.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[int, Moment, Moment]] = []
        self._start: Moment = 0.0

    @property
    def seconds_per_image(self) -> float | None:
        """Of this process; `None` if it has drawn nothing. Waits until what it has drawn is there."""
        counted = self._batches[1:] or self._batches
        if not counted:
            return None
        return sum(_seconds(start, end) for _, start, end in counted) / sum(count for count, _, _ in counted)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._start = _moment(pl_module.device)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        self._batches.append((len(batch.indices), self._start, _moment(pl_module.device)))


def _moment(device: torch.device) -> Moment:
    if device.type != "cuda":
        return now(device)
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Moment, end: Moment) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    end.synchronize()
    return start.elapsed_time(end) / 1000
