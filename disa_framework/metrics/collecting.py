"""Features of images that Lightning's predict loop draws or reads from disk, on all of its processes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from disa_framework.data.image_files import ImageFiles
from disa_framework.data.reading import ImageBatch, ImageData, Reading
from disa_framework.metrics.feature_set import Features, FeatureSet
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.images import to_uint8


class Evaluation(Callback):
    """Adds the images of every batch to a set of features; the images are not kept.

    Drawn images, in [-1, 1], are rounded to bytes, as files would hold them. Call `collect` on all processes when the
    run is over. The run has to begin at its first image: what was drawn before is not measured.
    """

    def __init__(self, features: FeatureSet) -> None:
        self.features = features

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.features.to(pl_module.device)
        count, width = self.features.count, self.features.extractor.num_features
        if count <= width and trainer.is_global_zero:
            warnings.warn(
                f"{count} images for {width} features: their covariance is singular, which makes the Fréchet distance "
                "too large, the more so the fewer they are; compare it only with that of as many images",
                stacklevel=2,
            )

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


def collect(features: FeatureSet) -> Features:
    """What all processes have seen.

    Raises:
        ChildProcessError: another process has stopped.
        ValueError: an image was lost or came twice.
    """
    try:
        return features.compute()
    except RuntimeError as error:  # so the back ends say that nobody answers
        if not dist.is_initialized():
            raise
        raise ChildProcessError(f"another process has stopped, and says why; this one: {error}") from error


def read_features(
    images: ImageFiles, extractor: FeatureExtractor, reading: Reading = Reading(), keep: bool = False
) -> Features:
    """Features of a set of images on disk.

    Args:
        images: the set.
        extractor: the network.
        reading: in which batches, on which devices.
        keep: whether to keep the features themselves, not only mean and covariance.

    Raises:
        ValueError: fewer than 2 images; a damaged file, or one of another size.
    """
    features = FeatureSet(extractor, len(images), keep)
    data = ImageData(images.__getitem__, len(images), reading)
    reading.runner(Evaluation(features)).predict(_Reader(), datamodule=data, return_predictions=False)
    return collect(features)


class _Reader(LightningModule):
    """Draws what lies on disk."""

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        return batch.pixels
