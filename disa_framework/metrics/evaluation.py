"""Measuring a set of images against a reference, on one process or several: what disa-evaluate does.

The figures are those that are published: images as bytes, features of a network that says how it resizes, the
reference as statistics or as images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disa_framework.data.archive import names_of
from disa_framework.data.image_files import ImageFiles, holds_images
from disa_framework.data.reading import Reading
from disa_framework.files import check_writable
from disa_framework.metrics.collecting import read_features
from disa_framework.metrics.feature_set import Features
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.fid import check_width, frechet_distance, load_statistics, save_statistics
from disa_framework.metrics.inception import InceptionFeatures
from disa_framework.metrics.inception_score import inception_score
from disa_framework.metrics.precision_recall import precision_recall
from disa_framework.resuming import digest_of


@dataclass(frozen=True)
class Comparison:
    """What images are measured against, and with what.

    Args:
        reference: an `.npz` with `mu` and `sigma` as ADM publishes it, or images: a folder, or an `.npz` with `arr_0`;
            by default the statistics that come with the features.
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

    def reference_features(self, extractor: FeatureExtractor, reading: Reading = Reading()) -> Features:
        """What is known of the reference.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: the file holds neither statistics nor images, or those of another network; no images where
                precision and recall need them.
        """
        given = self.reference or extractor.reference
        if given is None:
            raise ValueError(
                "give the reference to compare with: an .npz with mu and sigma, or a folder or an .npz of images"
            )
        path = Path(given)
        statistics = None if _holds_only_images(path) else load_statistics(path)
        if statistics:
            check_width(statistics, extractor, path)
        if statistics and not self.precision_recall:
            return statistics
        if path.is_file() and not holds_images(path):
            raise ValueError(f"{path} holds no images, which precision and recall need: give a folder or such an .npz")
        found = read_features(ImageFiles(path, self.image_size), extractor, reading, self.precision_recall)
        return found._replace(mu=statistics.mu, sigma=statistics.sigma) if statistics else found


def evaluate(
    samples: str | Path, comparison: Comparison, reading: Reading = Reading(), count: int | None = None
) -> dict[str, Any] | None:
    """The figures of images, with what they were made with; `None` on other processes than the first.

    Args:
        samples: a folder, or an `.npz`.
        comparison: what they are measured against.
        reading: how they and images of the reference are read.
        count: how many images there have to be.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: images that cannot be measured, or a reference that they cannot be compared with.
    """
    images, extractor = ImageFiles(samples), comparison.extractor()
    if count not in (None, len(images)):
        raise ValueError(f"{samples} holds {len(images)} images, not {count}")
    network = describe(extractor)
    reference = comparison.reference_features(extractor, reading)
    found = read_features(images, extractor, reading, comparison.precision_recall)
    if not reading.leads:
        return None
    return {
        **figures(found, reference),
        "images": len(images),
        "samples": str(samples),
        "reference": str(comparison.reference or extractor.reference),
        **network,
        "pixels": "bytes as they are in the files",
    }


def make_reference(images: str | Path, comparison: Comparison, reading: Reading = Reading()) -> int | None:
    """Writes the statistics of images, a folder or an `.npz`, to the reference of a comparison.

    Returns:
        The number of images; `None` on other processes than the first.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: images that cannot be measured, or a reference that is no `.npz`.
    """
    if not str(comparison.reference).endswith(".npz"):
        raise ValueError("say with --reference to which file (.npz) the statistics are to be written")
    path = Path(str(comparison.reference))
    check_writable(path)
    found, extractor = ImageFiles(images, comparison.image_size), comparison.extractor()
    statistics = read_features(found, extractor, reading)
    if not reading.leads:
        return None
    save_statistics(path, statistics)
    return len(found)


def figures(samples: Features, reference: Features) -> dict[str, float]:
    """The Fréchet distance, and what else can be told: the Inception Score, precision and recall."""
    found = {"fid": frechet_distance(samples, reference)}
    if samples.logits is not None:
        found["inception_score"], found["inception_score_std"] = inception_score(samples.logits)
    if samples.vectors is not None and reference.vectors is not None:
        found["precision"], found["recall"] = precision_recall(reference.vectors, samples.vectors)
    return found


def describe(extractor: FeatureExtractor) -> dict[str, Any]:
    """What has to be told of a network for figures to be comparable."""
    return {
        "features": f"{type(extractor).__module__}.{type(extractor).__qualname__}",
        "num_features": extractor.num_features,
        "resizing": extractor.resizing,
        "features_sha256": digest_of(extractor),
    }


def _holds_only_images(path: Path) -> bool:
    """Whether images are all that there is; of what is no file, `load_statistics` tells."""
    return path.is_dir() or (path.is_file() and "mu" not in names_of(path) and holds_images(path))
