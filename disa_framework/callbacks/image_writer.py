"""Writes what the predict loop draws, while the next batch is drawn.

Letters: `B` images, `c h w` channels and pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from disa_framework.callbacks.samples import SampleFolder
from disa_framework.data.requests import Request
from disa_framework.metrics.images import to_uint8

_THREADS = 4


class ImageWriter(BasePredictionWriter):
    """Writes the images of each batch into a sample folder; those that exist are left as they are.

    Threads encode and write a batch while the next is drawn, and have to be done with it when that has been drawn: two
    batches are held at most. An error of a thread is raised then, or at the end of the run. A run that is stopped, by
    an error or by Ctrl-C, ends when all that it has drawn is written.
    """

    def __init__(self, folder: SampleFolder) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._threads: ThreadPoolExecutor | None = None
        self._writes: list[Future[None]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Request,
        batch_idx: int,
        dataloader_idx: int,
    ) -> Any:
        # Made in the process that draws: a callback with threads cannot be sent there.
        self._threads = self._threads or ThreadPoolExecutor(_THREADS, "image-writer")
        images, before = _OnTheWay(batch.indices, prediction), self._writes
        self._writes = [self._threads.submit(images.write, place, self.folder) for place in range(len(prediction))]
        _wait(before)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(self._writes)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()  # the exception matters more than those of threads

    def _close(self) -> None:
        """Returns when nothing is left to write."""
        if self._threads:
            self._threads.shutdown()
        self._threads, self._writes = None, []


class _OnTheWay:
    """Images that are being copied to the host; whoever writes them waits for that, not whoever draws.

    Args:
        indices: `[B]`, their places in the run.
        images: `[B, c, h, w]` in [-1, 1], on any device.
    """

    def __init__(self, indices: Tensor, images: Tensor) -> None:
        cuda = images.is_cuda  # whose copies to the host go to pinned memory, and are not waited for
        self._pixels = to_uint8(images).to("cpu", non_blocking=cuda)
        self._finite = images.isfinite().all().to("cpu", non_blocking=cuda)
        self._indices = indices
        self._arrived = torch.cuda.current_stream(images.device).record_event() if cuda else None

    def write(self, place: int, folder: SampleFolder) -> None:
        """Writes one of them.

        Raises:
            ValueError: if any of them has a pixel that is no number.
            OSError: if it cannot be written.
        """
        if self._arrived:
            self._arrived.synchronize()
        if not self._finite:
            raise ValueError("the model drew NaN or infinite pixels: check its weights and the guidance scale")
        folder.write(int(self._indices[place]), self._pixels[place])


def _wait(writes: Sequence[Future[None]]) -> None:
    """Returns when all are done, or raises the first error of one."""
    for write in writes:
        write.result()
