"""How far training is, in lines, where no progress bar can be shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer


class TrainingLines(Callback):
    """Tells the step, of how many, the loss, the last distance if one is measured, and the seconds that are left.

    Args:
        say: is given a line.
        seconds: between two lines, at least.
    """

    def __init__(self, say: Callable[[str], None], seconds: float = 15.0) -> None:
        self.say, self.seconds = say, seconds
        self._begun, self._from, self._said = 0.0, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = self._said = time.monotonic()
        self._from = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        early = time.monotonic() < self._said + self.seconds and step < total and not trainer.should_stop
        if early or not trainer.is_global_zero:
            return
        self._said = time.monotonic()
        left = (self._said - self._begun) / max(1, step - self._from) * (total - step)
        ends = f" of {total}" if math.isfinite(total) else ""
        more = f", {left:.0f} s left" if 0 < left < math.inf else ""
        distance = trainer.callback_metrics.get("distance")
        measured = "" if distance is None else f", distance {float(distance):.4g}"
        self.say(f"step {step}{ends}, loss {float(outputs['loss']):.4g}{measured}{more}")
