"""Writes what the predict loop draws, while the next batch is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from disa_framework.callbacks.sample_folder import SampleFolder
from disa_framework.data.requests import Request

_THREADS = 4


class FolderWriter(BasePredictionWriter):
    """Writes the samples of each batch into a folder; those that exist are left as they are.

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
        self._threads = self._threads or ThreadPoolExecutor(_THREADS, "folder-writer")
        samples, before = _OnTheWay(batch.indices, prediction, self.folder), self._writes
        self._writes = [self._threads.submit(samples.write, place) for place in range(len(prediction))]
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
    """Samples that are being copied to the host; whoever writes them waits for that, not whoever draws.

    Args:
        indices: `[B]`, their places in the run.
        samples: `[B, ...]`, on any device.
        folder: where they go.
    """

    def __init__(self, indices: Tensor, samples: Tensor, folder: SampleFolder) -> None:
        cuda = samples.is_cuda  # whose copies to the host go to pinned memory, and are not waited for
        self._samples = folder.writer.prepare(samples).to("cpu", non_blocking=cuda)
        self._finite = samples.isfinite().all().to("cpu", non_blocking=cuda)
        self._indices, self._folder = indices, folder
        self._arrived = torch.cuda.current_stream(samples.device).record_event() if cuda else None

    def write(self, place: int) -> None:
        """Writes one of them.

        Raises:
            ValueError: if any of them has a value that is no number.
            OSError: if it cannot be written.
        """
        if self._arrived:
            self._arrived.synchronize()
        if not self._finite:
            raise ValueError("the model drew NaN or infinite values: check its weights and the guidance scale")
        self._folder.write(int(self._indices[place]), self._samples[place])


def _wait(writes: Sequence[Future[None]]) -> None:
    """Returns when all are done, or raises the first error of one."""
    for write in writes:
        write.result()
