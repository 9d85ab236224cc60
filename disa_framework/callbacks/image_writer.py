"""Writes what the predict loop draws, as soon as it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from disa_framework.callbacks.samples import SampleFolder
from disa_framework.data.requests import Request


class ImageWriter(BasePredictionWriter):
    """Writes the images of each batch into a sample folder; those that exist are left as they are."""

    def __init__(self, folder: SampleFolder) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

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
        if not prediction.isfinite().all():
            raise ValueError("the model drew NaN or infinite pixels: check its weights and the guidance scale")
        for index, image in zip(batch.indices.tolist(), prediction, strict=True):
            self.folder.write(index, image)
