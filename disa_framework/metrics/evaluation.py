"""Measuring a set of images against a reference, on one process or several.

The figures are those that are published: images as bytes, features of a network that says how it resizes, the
reference as statistics or as images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import LightningModule, Trainer
from torch import Tensor

from disa_framework.callbacks.evaluation import Evaluation
from disa_framework.metrics.feature_set import Features, FeatureSet
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.fid import frechet_distance, load_statistics, score_of_logits
from disa_framework.metrics.image_files import ImageData, ImageFiles, Images, archive_keys, holds_images
from disa_framework.metrics.inception import InceptionFeatures
from disa_framework.metrics.precision_recall import precision_recall

WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Comparison:
    """What images are measured against, and with what.

    Args:
        reference: an `.npz` with `mu` and `sigma` as ADM publishes it, or images: a folder, or an `.npz` with `arr_0`.
        features: the network that is looked through.
        inception: weights of the Inception that published figures are made with; short for `InceptionFeatures`.
        precision_recall: whether to find precision and recall, too; the reference has to hold images.
        image_size: width and height that the files of a reference folder are cropped to, as ADM does it.
    """

    reference: str | None = None
    features: FeatureExtractor | None = None
    inception: str | None = None
    precision_recall: bool = False
    image_size: int | None = None

    def extractor(self) -> FeatureExtractor:
        """The network.

        Raises:
            ValueError: none is given, or two are.
        """
        if (self.features is None) == (self.inception is None):
            raise ValueError(
                "give the network to measure with: either inception, the weights of the published one "
                "(weights-inception-2015-12-05-6726825d.pth), or features, a class such as DigitsFeatures"
            )
        return self.features or InceptionFeatures(str(self.inception))

    def reference_features(self, extractor: FeatureExtractor, **reading: Any) -> Features:
        """What is known of the reference, read with the options of `read_features`.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: the file holds neither statistics nor images, or those of another network; no images where
                precision and recall need them.
        """
        if self.reference is None:
            raise ValueError(
                "give the reference to compare with: an .npz with mu and sigma, or a folder or an .npz of images"
            )
        path = Path(self.reference)
        statistics = _statistics(path, extractor)
        if statistics and not self.precision_recall:
            return statistics
        if path.is_file() and not holds_images(path):
            raise ValueError(f"{path} holds no images, which precision and recall need: give a folder or such an .npz")
        images = ImageFiles(path, self.image_size)
        found = read_features(images, extractor, keep=self.precision_recall, **reading)
        return found._replace(mu=statistics.mu, sigma=statistics.sigma) if statistics else found


def read_features(
    images: ImageFiles,
    extractor: FeatureExtractor,
    keep: bool = False,
    batch_size: int = 64,
    num_workers: int = WORKERS,
    trainer: dict[str, Any] | None = None,
) -> Features:
    """The features of images on disk, read by Lightning's predict loop on all of its processes.

    Args:
        images: the set.
        extractor: the network.
        keep: whether to keep the features themselves, not only mean and covariance.
        batch_size: images looked at together.
        num_workers: loader processes for each device.
        trainer: options of Lightning's trainer: devices, strategy.

    Raises:
        ValueError: fewer than 2 images; a damaged file, or one of another size.
    """
    features = FeatureSet(extractor, len(images), keep)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "inference_mode": True}
    run = Trainer(**{**(trainer or {}), **quiet, "callbacks": [Evaluation(features)]})
    run.predict(_Reader(), datamodule=ImageData(images, batch_size, num_workers), return_predictions=False)
    return collect(features)


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


def figures(samples: Features, reference: Features) -> dict[str, float]:
    """The Fréchet distance, and what else can be told: the Inception Score, precision and recall."""
    found = {"fid": frechet_distance(samples, reference)}
    if samples.logits is not None:
        found["inception_score"], found["inception_score_std"] = score_of_logits(samples.logits)
    if samples.vectors is not None and reference.vectors is not None:
        found["precision"], found["recall"] = precision_recall(reference.vectors, samples.vectors)
    return found


def describe(extractor: FeatureExtractor) -> dict[str, Any]:
    """What has to be told of a network for figures to be comparable."""
    return {
        "features": f"{type(extractor).__module__}.{type(extractor).__qualname__}",
        "num_features": extractor.num_features,
        "resizing": extractor.resizing,
    }


class _Reader(LightningModule):
    """Draws what lies on disk."""

    def predict_step(self, batch: Images, batch_idx: int) -> Tensor:
        return batch.pixels


def _statistics(path: Path, extractor: FeatureExtractor) -> Features | None:
    """Those of a file that has any."""
    if path.is_dir() or (path.is_file() and "mu" not in (keys := archive_keys(path)) and "arr_0" in keys):
        return None
    mu, sigma = load_statistics(path)
    if len(mu) != extractor.num_features:
        raise ValueError(
            f"{path} holds statistics of {len(mu)} features, {type(extractor).__name__} gives "
            f"{extractor.num_features}: use statistics made with the same network"
        )
    return Features(mu, sigma)
