"""Measures what the predict loop draws or reads, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from disa_framework.metrics.feature_set import FeatureSet
from disa_framework.metrics.images import to_uint8


class Evaluation(Callback):
    """Adds the images of every batch to a set of features; the images are not kept.

    Drawn images, in [-1, 1], are rounded to bytes, as files would hold them. Call `features.compute()` on all
    processes when the run is over. The run has to begin at its first image: what was drawn before is not measured.
    """

    def __init__(self, features: FeatureSet) -> None:
        self.features = features

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.features.to(pl_module.device)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images: Tensor = outputs
        if not images.isfinite().all():
            raise ValueError("the model drew NaN or infinite pixels: check its weights and the guidance scale")
        if images.dtype != torch.uint8:
            images = to_uint8(images)
        # A process without work of its own draws the first batch, which the first process draws, too: see RequestData.
        copied = not trainer.is_global_zero and int(batch.indices[0]) == 0
        own = slice(0 if copied else None)
        self.features.update(images[own], batch.indices[own].to(images.device))
