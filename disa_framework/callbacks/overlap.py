"""Decodes a batch of images while the next is drawn, on a CUDA device."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class Overlap(Callback):
    """Two streams for the predict loop: one draws latents, and all that becomes of them is done on the other.

    From `begin` to the end of a batch the second stream is the current one, so callbacks find the images where they
    look for them. Then the first goes on with the next batch, without waiting. Nothing is done on other devices than
    CUDA, nor if Lightning keeps the predictions, which it copies to the host before it goes on. It has to be the last
    callback, as those that a module brings along are.
    """

    def __init__(self) -> None:
        self._first: torch.cuda.Stream | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = trainer.predict_loop.return_predictions
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            kept |= isinstance(callback, BasePredictionWriter) and callback.interval.on_epoch
        if pl_module.device.type == "cuda" and not kept:
            self._first = torch.cuda.current_stream(pl_module.device)
            self._second = torch.cuda.Stream(pl_module.device)

    def begin(self, latents: Tensor) -> None:
        """What follows in this batch needs of what came before nothing but the latents."""
        if self._first:
            self._second.wait_stream(self._first)
            latents.record_stream(self._second)  # or the next batch would be drawn into their memory
            torch.cuda.set_stream(self._second)

    def on_predict_batch_end(self, *args: object) -> None:
        if self._first:
            torch.cuda.set_stream(self._first)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first:
            self._first.wait_stream(self._second)  # for whoever was given the images
            self._first = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._first:
            torch.cuda.set_stream(self._first)
            self.on_predict_end(trainer, pl_module)
