"""The one checkpoint that a run can be continued and images can be drawn from."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` in the trainer's `default_root_dir`, replaced as a whole.

    A signal that asks the process to end, SIGTERM or SIGINT, does what it did before training when the step in hand is
    done and the checkpoint written; a second one does so at once.

    Args:
        every_n_epochs: how often it is written, beside the end of training.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._saved_step, self._asked = -1, 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In place of Lightning's own, which end training without a checkpoint and with status 0.
        _handle(dict.fromkeys(self._before, self._ask))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._stops(trainer):
            self._end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._stops(trainer):
            raise StopIteration  # ends validation, behind which `EMAWeightAveraging` puts the trained weights back

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stops(trainer):
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 or _ends(trainer):
            self._save(trainer)

    def _ask(self, number: int, _: Any) -> None:
        if self._asked:
            self._yield(number)
        self._asked = number

    def _stops(self, trainer: Trainer) -> bool:
        """Whether a signal has asked this process, or one that trains with it, to end."""
        asked = bool(self._asked)
        return asked if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _end(self, trainer: Trainer) -> None:
        self._save(trainer)
        self._yield(self._asked or signal.SIGTERM)

    def _yield(self, number: int) -> None:
        _handle(self._before)
        signal.raise_signal(number)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self._saved_step == trainer.global_step:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / "last.ckpt"
        part = path.with_suffix(".part")
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(f"{path} cannot be written, and is as it was: {error}") from error
        self._saved_step = trainer.global_step


def _handle(handlers: dict[int, Any]) -> None:
    """Sets what is done at signals, which the main thread alone can."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ends(trainer: Trainer) -> bool:
    """Whether this epoch is the last. When training has ended it is too late for a checkpoint to go on from:
    `EMAWeightAveraging` has replaced the trained weights by their average."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return trainer.should_stop or 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step
