"""FID is the Fréchet formula, from images or from statistics alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torchmetrics.image.fid import FrechetInceptionDistance

from disa_framework.metrics import (
    Features,
    FrechetDistance,
    features_of,
    frechet_distance,
    load_statistics,
    save_statistics,
    to_uint8,
)  # fmt: skip
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData
from tests.evaluated import Pixels


@pytest.fixture(scope="module")
def real() -> Tensor:
    return DigitsData("plain").reference_images()


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return to_uint8(DigitsData("random").val_dataset().tensors[0])


def gaussian(mu: list[float], sigma: list[list[float]]) -> Features:
    return Features(torch.tensor(mu).double(), torch.tensor(sigma).double())


ROOTS: dict[str, Callable[[Any], Any]] = {
    "scipy": lambda product: np.trace(scipy.linalg.sqrtm(product).real),
    "torch-fidelity": lambda product: np.sqrt(np.linalg.eigvals(product).astype("complex128")).real.sum(),
}
"""The trace of the root of a product, as others compute it."""


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
def test_the_distance_is_the_published_formula(root: Callable[[Any], Any], real: Tensor, fake: Tensor) -> None:
    a, b = (features_of(DigitsFeatures(), images) for images in (fake, real))
    rest = (a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace()
    expected = rest.item() - 2 * float(root(a.sigma.numpy() @ b.sigma.numpy()))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_distance_is_torchmetrics_own(real: Tensor, fake: Tensor) -> None:
    network = DigitsFeatures()
    theirs = FrechetInceptionDistance(network)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    found = frechet_distance(features_of(network, fake), features_of(network, real))
    assert found == pytest.approx(theirs.compute().item(), rel=1e-6)  # which is rounded to float32


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_singular_covariances_have_a_distance(rank: int) -> None:
    """Covariances of few images, whose square root is known: they share their directions."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    spread_a, spread_b = torch.zeros(2, 8).double()
    spread_a[:rank], spread_b[:rank] = torch.arange(1, rank + 1), 4.0
    a, b = (Features(basis[0], (basis * s.square()) @ basis.T) for s in (spread_a, spread_b))
    assert frechet_distance(a, b) == pytest.approx((spread_a - spread_b).square().sum().item(), rel=1e-6, abs=1e-6)
    assert abs(frechet_distance(a, a)) < 1e-6


def test_the_distance_of_gaussians_with_diagonal_covariance_is_known() -> None:
    a, b = gaussian([1, 5], [[4, 0], [0, 9]]), gaussian([4, 1], [[1, 0], [0, 25]])
    for x, y in ((a, b), (b, a)):
        assert frechet_distance(x, y) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_distance_is_computed_where_the_features_are() -> None:
    a, b = gaussian([0, 0], [[1, 0], [0, 1]]), gaussian([1, 1], [[2, 1], [1, 2]])
    there = Features(a.mu.cuda(), a.sigma.cuda())
    assert frechet_distance(there, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_metric_adds_up_portions_and_keeps_its_reference_on_reset(real: Tensor, fake: Tensor) -> None:
    network = DigitsFeatures()
    reference = features_of(network, real)
    metric = FrechetDistance(network, reference)
    for _ in range(2):
        for part in fake.split(100):
            metric.update(part)
        expected = frechet_distance(features_of(network, fake), reference)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-9)
        metric.reset()
    metric.update(real.flip(0))
    assert abs(metric.compute()) < 1e-5


def test_it_sees_a_wrong_share_of_inverted_images(real: Tensor) -> None:
    a, b = (features_of(DigitsFeatures(), images) for images in (real, DigitsData("random").reference_images()))
    assert frechet_distance(a, b) > 1


def _distance_on_two(rank: int, place: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=2)
    metric = FrechetDistance(Pixels(), gaussian([0, 0], [[1, 0], [0, 1]]))
    if rank == 0:
        metric.update(torch.arange(20).reshape(10, 1, 1, 2).byte())
    torch.save(metric.compute(), f"{place}/{rank}")
    torch.distributed.destroy_process_group()


def test_a_process_that_drew_nothing_computes_what_the_other_does(tmp_path: Path) -> None:
    spawn(_distance_on_two, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    metric = FrechetDistance(Pixels(), gaussian([0, 0], [[1, 0], [0, 1]]))
    metric.update(torch.arange(20).reshape(10, 1, 1, 2).byte())
    assert found == [metric.compute()] * 2


def test_to_uint8_rounds_and_clamps() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_uint8(torch.tensor([10.4, 10.6]) / 127.5 - 1).tolist() == [10, 11]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)).tolist() == [0, 128, 255]


# --- statistics in files ------------------------------------------------------------------------------------


def test_statistics_survive_the_way_through_a_file(tmp_path: Path) -> None:
    known = gaussian([3, -1], [[2, 0.5], [0.5, 1]])
    save_statistics(tmp_path / "s.npz", known)
    found = load_statistics(tmp_path / "s.npz")
    assert torch.equal(found.mu, known.mu) and torch.equal(found.sigma, known.sigma)


NAN, INF, EYE = float("nan"), float("inf"), np.eye(2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, r"lacks \['sigma'\]"),
        ({"mu": np.zeros(2), "sigma": np.zeros((3, 3))}, r"mu \[2\] and sigma \[3, 3\]"),
        ({"mu": np.zeros((2, 2)), "sigma": EYE}, r"mu \[2, 2\]"),
        ({"mu": np.array([0, NAN]), "sigma": EYE}, "NaN or infinity"),
        ({"mu": np.array([-INF, 0]), "sigma": EYE}, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), NAN)}, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.diag([1, INF])}, "NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 2], [3, 1]])}, "no covariance"),
        ({"mu": np.zeros(2), "sigma": -EYE}, "no covariance"),
        ({"mu": np.array(["a", "b"]), "sigma": EYE}, "mu is <U1 .* no plain numbers"),
        ({"mu": np.zeros(2), "sigma": EYE * 1j}, "sigma is complex128 .* no plain numbers"),
        ({"mu": np.array([print], dtype=object), "sigma": np.zeros((1, 1))}, "mu is object .* no plain numbers"),
    ],
)
def test_statistics_that_cannot_be_used_are_named_in_one_line(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=rf"^[^\n]*s\.npz[^\n]*{message}[^\n]*$"):
        load_statistics(tmp_path / "s.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\3\4 cut short"])
def test_a_file_that_is_no_archive_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.npz is no \.npz"):
        load_statistics(tmp_path / "s.npz")
    with pytest.raises(FileNotFoundError, match=r"t\.npz"):
        load_statistics(tmp_path / "t.npz")


def test_statistics_of_another_network_or_that_are_no_numbers_are_refused() -> None:
    plain = gaussian([0, 0], [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="statistics of 2 features, DigitsFeatures gives 64"):
        FrechetDistance(DigitsFeatures(), plain)
    for broken in (gaussian([0, NAN], [[1, 0], [0, 1]]), gaussian([0, 0], [[1, 0], [0, INF]])):
        with pytest.raises(ValueError, match="NaN or infinity"):
            frechet_distance(plain, broken)
