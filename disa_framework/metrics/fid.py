"""The Fréchet distance between the features of two sets of images (Heusel et al., arXiv 1706.08500).

Letters: `F` features.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disa_framework.data.archive import names_of, read_array
from disa_framework.files import write_atomically
from disa_framework.metrics.feature_set import Features, FeatureSums
from disa_framework.metrics.features import FeatureExtractor


class FrechetDistance(FeatureSums):
    """Adds up images, uint8 `[B, c, h, w]`; `compute()` is their distance from a reference, float64.

    Args:
        extractor: the network.
        reference: statistics made with the same network, from `features_of` or `load_statistics`.

    Raises:
        ValueError: statistics of another number of features.
    """

    def __init__(self, extractor: FeatureExtractor, reference: Features) -> None:
        super().__init__(extractor)
        check_width(reference, extractor)
        self.reference = reference

    def update(self, images: Tensor) -> None:
        self.add(images)

    def compute(self) -> Tensor:
        return torch.tensor(frechet_distance(self.statistics(), self.reference), dtype=torch.float64)


def frechet_distance(a: Features, b: Features) -> float:
    """`|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2))`, computed where `a` is.

    Raises:
        ValueError: statistics that are no numbers.
    """
    mu_a, sigma_a, mu_b, sigma_b = (part.to(a.mu.device, torch.float64) for part in (*a[:2], *b[:2]))
    if not all(part.isfinite().all() for part in (mu_a, sigma_a, mu_b, sigma_b)):
        raise ValueError("statistics hold NaN or infinity: make them anew")
    # With sigma_a = W W^T the product has the eigenvalues of W^T sigma_b W, which is symmetric: none is below zero.
    values, vectors = torch.linalg.eigh(sigma_a)
    root = vectors * values.clamp(min=0).sqrt()
    product = torch.linalg.eigvalsh(root.T @ sigma_b @ root).clamp(min=0)
    distance = (mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * product.sqrt().sum()
    return distance.item()


def check_width(reference: Features, extractor: FeatureExtractor, source: object = "the reference") -> None:
    """Raises a ValueError if statistics are not those of a network."""
    if len(reference.mu) != extractor.num_features:
        raise ValueError(
            f"{source} holds statistics of {len(reference.mu)} features, {type(extractor).__name__} gives "
            f"{extractor.num_features}: use statistics made with the same network"
        )


def load_statistics(path: str | Path) -> Features:
    """Mean and covariance from an ADM style `.npz` with keys `mu` and `sigma`. Nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz`, a key is missing, or what it holds are no mean and covariance.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of an .npz with mu and sigma")
    names = names_of(path)
    if missing := sorted({"mu", "sigma"} - set(names)):
        raise ValueError(f"{path} is no .npz with mu and sigma: it lacks {missing}, holds {names}")
    mu, sigma = (torch.from_numpy(np.array(read_array(path, key), np.float64)) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path} holds mu {list(mu.shape)} and sigma {list(sigma.shape)}: must be [F] and [F, F]")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"mu or sigma of {path} holds NaN or infinity: make the file anew with disa-evaluate")
    if not torch.allclose(sigma, sigma.T) or (sigma.diagonal() < 0).any():
        raise ValueError(f"sigma of {path} is no covariance, which is symmetric: make the file anew")
    return Features(mu, sigma)


def save_statistics(path: str | Path, features: Features) -> None:
    """Write mean `[F]` and covariance `[F, F]` to an ADM style `.npz`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=features.mu.cpu().numpy(), sigma=features.sigma.cpu().numpy())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), buffer.getvalue())
