"""Ends training that has gone wrong."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

_STEPS = 50


class FiniteLoss(Callback):
    """Ends training when a loss or a weight is no finite number, so that no checkpoint with such weights is written.

    Losses are looked at together, now and then and before each checkpoint, as that waits for the device.

    Raises:
        ValueError: naming the step.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._losses.append(outputs["loss"].detach())
        if len(self._losses) == _STEPS * trainer.accumulate_grad_batches:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)
        weights = [weight.detach() for weight in pl_module.parameters() if weight.is_floating_point()]
        if not torch.nn.utils.get_total_norm(weights).isfinite():
            raise _failure("weights", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        losses, self._losses = self._losses, []
        if losses and not (finite := torch.stack(losses).isfinite()).all():
            after = (len(losses) - 1 - int(finite.int().argmin())) // trainer.accumulate_grad_batches
            raise _failure("loss", trainer.global_step - after)


def _failure(what: str, step: int) -> ValueError:
    return ValueError(
        f"the {what} of step {step} became NaN or infinite: train with a smaller --optimization.lr, more "
        "--optimization.warmup_steps or --trainer.gradient_clip_val 1; no checkpoint has been written since"
    )
