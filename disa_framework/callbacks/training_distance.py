"""How far what a model draws is from what it should draw, while it is trained."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torchmetrics import Metric

from disa_framework.callbacks.training_samples import asked
from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import take


class TrainingDistance(Callback):
    """Draws samples from the same noise at validations, with the weights that are validated, and measures them.

    It logs what it finds as `distance`, which Lightning's `ModelCheckpoint` and `EarlyStopping` can watch. Processes
    share the samples, which are drawn in batches as large as those of the data, and not kept.

    Args:
        quality: what is measured.
        samples: how many are drawn.
        every: so many validations one is measured, beginning with the first.

    Raises:
        ValueError: fewer than 2 samples, or `every` below 1.
    """

    def __init__(self, quality: Quality, samples: int = 1000, every: int = 1) -> None:
        if samples < 2 or every < 1:
            raise ValueError(f"need at least 2 samples, and every at least 1; got {samples}, and every {every}")
        self.quality, self.samples, self.every = quality, samples, every
        self._metric: Metric | None = None
        self._validations = 0

    # When the first batch begins, averaged weights are in their place, whichever callback comes first.
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or dataloader_idx or trainer.sanity_checking:
            return
        assert isinstance(pl_module, ARDiffusionModule)
        if self._validations % self.every == 0:
            distance = self._measure(trainer, pl_module, batch)
            options: dict[str, Any] = {"prog_bar": True, "sync_dist": True, "add_dataloader_idx": False}
            pl_module.log("distance", distance, batch_size=1, **options)
        self._validations += 1

    def _measure(self, trainer: Trainer, module: ARDiffusionModule, batch: Any) -> float:
        condition = asked(module.model, batch[1], self.samples)
        if self._metric is None:  # whose reference may take long
            self._metric = self.quality.metric(module, condition).to(module.device)
        self._metric.reset()
        own, together = range(trainer.global_rank, self.samples, trainer.world_size), len(batch[0])
        for start in range(0, len(own), together):
            places = own[start : start + together]
            part = None if condition is None else take(condition, places)
            self.quality.update(self._metric, module.draw(part, torch.tensor(places)))
        return float(self._metric.compute())
