"""Decodes a batch of images while the next is drawn, on a CUDA device."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class Overlap(Callback):
    """Two streams for the predict loop: one draws latents, and all that becomes of them is done on the other.

    From `begin` to the end of a batch the second stream is the current one, so callbacks find the images where they
    look for them. Then the first goes on with the next batch, without waiting; at the end of the epoch it waits for
    all. It has to be the last callback, as those that a module brings along are.

    It is for images that are written batch by batch: nothing is done on other devices than CUDA, nor where nobody
    writes, or where Lightning keeps the predictions, which it copies to the host before it goes on.
    """

    def __init__(self) -> None:
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        if device.type == "cuda" and _writes_only(trainer):
            self._streams = torch.cuda.current_stream(device), torch.cuda.Stream(device)

    def begin(self, latents: Tensor) -> None:
        """What follows in this batch needs of what came before nothing but the latents."""
        if self._streams:
            first, second = self._streams
            second.wait_stream(first)
            latents.record_stream(second)  # or the next batch would be drawn into their memory
            torch.cuda.set_stream(second)

    def on_predict_batch_end(self, *args: object) -> None:
        if self._streams:
            torch.cuda.set_stream(self._streams[0])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._streams:
            first, second = self._streams
            torch.cuda.set_stream(first)
            first.wait_stream(second)
            self._streams = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_predict_epoch_end(trainer, pl_module)


def _writes_only(trainer: Trainer) -> bool:
    """Whether images are written batch by batch, and not kept."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    writers = [callback for callback in callbacks if isinstance(callback, BasePredictionWriter)]
    kept = trainer.predict_loop.return_predictions or any(writer.interval.on_epoch for writer in writers)
    return bool(writers) and not kept
