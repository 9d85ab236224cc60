"""FID and Inception Score with any feature extractor: torchmetrics', set up the way numbers are published.

Letters: `F` features. The metrics hold a network, so keep them out of module trees: state dicts, weight
averages and DDP would copy it.
"""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from disa_framework.files import write_atomically
from disa_framework.metrics.feature_set import Features
from disa_framework.metrics.features import FeatureExtractor

_MANY = 1_000_000_000  # so many that another factor changes no digit of the covariance


def fid(extractor: FeatureExtractor, synchronize: bool = True) -> FrechetInceptionDistance:
    """A Fréchet distance that takes uint8 images, sums features in float64 and keeps its reference on reset.

    Give the reference with `set_reference` or `update(images, real=True)`, then `update(images, real=False)`.
    It adds up what all processes have seen, unless each of them has seen everything (`synchronize=False`).
    """
    # A kept result would outlive a new reference.
    metric = FrechetInceptionDistance(
        extractor, reset_real_features=False, compute_with_cache=False, sync_on_compute=synchronize
    )
    # torchmetrics sets this on the first update; a rank that drew no image must be able to compute, too.
    metric.orig_dtype = torch.float32
    return metric


def inception_score(extractor: FeatureExtractor, synchronize: bool = True) -> InceptionScore:
    """An Inception Score that takes uint8 images; `compute()` gives mean and deviation over ten splits.

    The extractor has to return logits. The splits are the same in every call.
    """
    with warnings.catch_warnings():
        # It warns that it keeps all features: here they are only as many numbers as there are classes.
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all extracted features")
        return _InceptionScore(extractor, sync_on_compute=synchronize)


class _InceptionScore(InceptionScore):
    """torchmetrics draws the splits from the global generator; this one leaves it as it was."""

    def compute(self) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would seed the accelerators' generators as well.
            torch.default_generator.manual_seed(0)
            return super().compute()


def set_reference(
    metric: FrechetInceptionDistance, mu: Tensor, sigma: Tensor, count: int = _MANY
) -> None:
    """Make `N(mu, sigma)` the reference of the metric, in place of what it had.

    In a distributed run every rank sets the same reference, and their sums are added.

    Args:
        metric: from `fid`.
        mu: mean of the features, `[F]`.
        sigma: their unbiased covariance, `[F, F]`.
        count: how many images are behind them. It matters only if more are added with `real=True`;
            otherwise keep the default, whose size makes the sum over ranks have the same covariance.

    Raises:
        ValueError: shapes that do not fit the extractor, or a count below 2.
    """
    width = metric.real_features_sum.shape[0]
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise ValueError(
            f"reference statistics have shapes mu {list(mu.shape)}, sigma {list(sigma.shape)}: "
            f"the extractor's {width} features need [{width}] and [{width}, {width}]; "
            "use statistics made with the same extractor"
        )
    if count < 2:
        raise ValueError(f"count={count}: a covariance needs at least 2 images; give the number behind it")
    _set_sums(metric, "real", mu, sigma, count)


def _set_sums(metric: FrechetInceptionDistance, side: str, mu: Tensor, sigma: Tensor, count: int) -> None:
    """What the metric would have summed up over `count` images, real or fake, of this mean and covariance."""
    mu, sigma = mu.to(metric.device, torch.float64), sigma.to(metric.device, torch.float64)
    setattr(metric, f"{side}_features_sum", count * mu)
    setattr(metric, f"{side}_features_cov_sum", (count - 1) * sigma + count * torch.outer(mu, mu))
    setattr(metric, f"{side}_features_num_samples", torch.tensor(count, device=metric.device))


def frechet_distance(samples: Features, reference: Features) -> float:
    """torchmetrics' Fréchet distance between two sets whose means and covariances are known already."""
    metric = fid(_Given(len(samples.mu)), synchronize=False).to(samples.mu.device)
    none = torch.zeros(0, len(samples.mu), dtype=torch.float64, device=samples.mu.device)
    metric.update(none, real=False)  # it warns if it never was
    set_reference(metric, reference.mu, reference.sigma)
    _set_sums(metric, "fake", samples.mu, samples.sigma, _MANY)
    return metric.compute().item()


def score_of_logits(logits: Tensor) -> tuple[float, float]:
    """torchmetrics' Inception Score of logits `[N, C]` that are known already: mean and deviation over ten splits."""
    metric = inception_score(_Given(logits.shape[1]), synchronize=False).to(logits.device)
    metric.update(logits.double())
    score, deviation = metric.compute()
    return score.item(), deviation.item()


class _Given(FeatureExtractor):
    """Passes features on, where they are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        return images


def reference_statistics(metric: FrechetInceptionDistance) -> tuple[Tensor, Tensor]:
    """Mean `[F]` and unbiased covariance `[F, F]` of the metric's reference, float64.

    Raises:
        ValueError: fewer than 2 reference images.
    """
    count = int(metric.real_features_num_samples)
    if count < 2:
        raise ValueError(
            f"the reference has {count} images: a covariance needs at least 2; "
            "call update(images, real=True) or set_reference first"
        )
    mu = metric.real_features_sum / count
    sigma = (metric.real_features_cov_sum - count * torch.outer(mu, mu)) / (count - 1)
    return mu, sigma


def load_statistics(path: str | Path) -> tuple[Tensor, Tensor]:
    """Mean `[F]` and covariance `[F, F]`, float64, from an ADM style `.npz` with keys `mu` and `sigma`.

    Nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz`, a key is missing, or the shapes do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of an .npz with mu and sigma")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz archive: give one made by save_statistics or by ADM")
    with np.load(path, allow_pickle=False) as archive:
        missing = sorted({"mu", "sigma"} - set(archive.files))
        if missing:
            raise ValueError(f"{path} lacks {missing}, holds {archive.files}: give one with mu and sigma")
        mu, sigma = (torch.from_numpy(np.asarray(archive[key], np.float64)) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path} holds mu {list(mu.shape)} and sigma {list(sigma.shape)}: must be [F] and [F, F]; "
            "make the file anew with save_statistics"
        )
    return mu, sigma


def save_statistics(path: str | Path, mu: Tensor, sigma: Tensor) -> None:
    """Write mean `[F]` and covariance `[F, F]` to an ADM style `.npz`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=mu.cpu().numpy(), sigma=sigma.cpu().numpy())
    write_atomically(Path(path), buffer.getvalue())
