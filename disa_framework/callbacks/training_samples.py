"""What a model draws while it is trained, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from disa_framework.callbacks.sample_writers import pictured, png
from disa_framework.data.archive import Pixels
from disa_framework.files import write_atomically
from disa_framework.models.base import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, cycled


class TrainingSamples(Callback):
    """Draws the same samples from the same noise at every validation, with the weights that are validated.

    A grid of them is written to `samples/` in the training's folder, named by the step, and given to TensorBoard and
    Weights & Biases where they are the logger. They are asked to be each class in turn, or what the first of the
    validation data are. Samples that are no images are not drawn again.

    Args:
        count: of samples.
    """

    def __init__(self, count: int = 20) -> None:
        if count < 1:
            raise ValueError(f"a grid has at least one sample, got {count}")
        self.count = count
        self._images = True

    # When the first batch begins, averaged weights are in their place, whichever callback comes first.
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or dataloader_idx or trainer.sanity_checking or not (trainer.is_global_zero and self._images):
            return
        assert isinstance(pl_module, ARDiffusionModule)
        samples = pl_module.draw(asked(pl_module.model, batch[1], self.count), torch.arange(self.count))
        try:
            grid = pictured(samples)
        except ValueError:
            self._images = False
        else:
            self._show(trainer, grid)

    def _show(self, trainer: Trainer, grid: Pixels) -> None:
        step = trainer.global_step
        file = Path(trainer.default_root_dir) / "samples" / f"step-{step:07}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, png(grid))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", grid, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [grid], step)


def asked(model: ARDiffusionModel, found: Condition, count: int) -> Condition | None:
    """What `count` samples are asked to be: each class in turn, or what validation data `found` are in turn; nothing of
    a model that is asked for nothing."""
    if model.num_classes:
        return torch.arange(count, device=model.device) % model.num_classes
    try:
        model.check_condition(found)
    except ValueError:
        return None
    return cycled(found, count)
