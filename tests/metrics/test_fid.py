"""FID is the Fréchet formula, from images or from statistics alike."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from disa_framework.data import DigitsData
from disa_framework.metrics import DigitsFeatures, DigitsLogits, FeatureExtractor, to_uint8
from disa_framework.metrics.fid import (
    fid,
    inception_score,
    load_statistics,
    reference_statistics,
    save_statistics,
    set_reference,
)


class Flat(FeatureExtractor):
    """Two pixels per image, as features."""

    num_features = 2

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


@pytest.fixture(scope="module")
def real() -> Tensor:
    return DigitsData("plain").reference_images()


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return to_uint8(DigitsData("random").val_dataset().tensors[0])


def frechet(a: Tensor, b: Tensor) -> float:
    """The formula in float64, with the matrix square root taken as such."""
    x, y = a.double().numpy(), b.double().numpy()
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma_x + sigma_y - 2 * root))


def test_fid_is_the_frechet_formula_on_the_features(real: Tensor, fake: Tensor) -> None:
    extractor = DigitsFeatures()
    metric = fid(extractor)
    for batch in real.split(400):
        metric.update(batch, real=True)
    metric.update(fake, real=False)
    expected = frechet(extractor(real), extractor(fake))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_fid_from_statistics_equals_fid_from_their_images(real: Tensor, fake: Tensor, tmp_path: Path) -> None:
    from_images, from_file = fid(DigitsFeatures()), fid(DigitsFeatures())
    from_images.update(real, real=True)
    save_statistics(tmp_path / "reference.npz", *reference_statistics(from_images))
    set_reference(from_file, *load_statistics(tmp_path / "reference.npz"))
    for metric in (from_images, from_file):
        metric.update(fake, real=False)
    assert from_file.compute().item() == pytest.approx(from_images.compute().item(), rel=1e-6)


def test_statistics_survive_the_way_through_a_metric_and_a_file(tmp_path: Path) -> None:
    mu, sigma = torch.tensor([3.0, -1.0]).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    metric = fid(Flat())
    set_reference(metric, mu, sigma)
    save_statistics(tmp_path / "s.npz", *reference_statistics(metric))
    for got, expected in zip(load_statistics(tmp_path / "s.npz"), (mu, sigma), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_more_images_can_join_a_reference_of_known_count(real: Tensor) -> None:
    whole, parts = fid(DigitsFeatures()), fid(DigitsFeatures())
    whole.update(real, real=True)
    parts.update(real[:600], real=True)
    set_reference(parts, *reference_statistics(parts), count=600)
    parts.update(real[600:], real=True)
    for got, expected in zip(reference_statistics(parts), reference_statistics(whole), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_reference_set_on_every_rank_stays_the_same_when_ranks_are_summed(real: Tensor) -> None:
    metric = fid(DigitsFeatures())
    metric.update(real, real=True)
    mu, sigma = reference_statistics(metric)
    set_reference(metric, mu, sigma)
    for state in ("real_features_sum", "real_features_cov_sum", "real_features_num_samples"):
        setattr(metric, state, 8 * getattr(metric, state))
    torch.testing.assert_close(reference_statistics(metric), (mu, sigma), rtol=1e-8, atol=1e-11)


def test_identical_sets_have_no_distance(real: Tensor) -> None:
    metric = fid(DigitsFeatures())
    metric.update(real, real=True)
    metric.update(real.flip(0), real=False)
    assert abs(metric.compute().item()) < 1e-5


def test_fid_sees_a_wrong_share_of_inverted_images(real: Tensor) -> None:
    metric = fid(DigitsFeatures())
    metric.update(DigitsData("random").reference_images(), real=True)
    metric.update(real, real=False)
    assert metric.compute().item() > 1


def test_reset_keeps_the_reference_and_a_new_reference_is_used_at_once(real: Tensor, fake: Tensor) -> None:
    metric = fid(DigitsFeatures())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    first = metric.compute()
    metric.reset()
    metric.update(fake, real=False)
    assert metric.compute() == first
    mu, sigma = reference_statistics(metric)
    set_reference(metric, mu + 1, sigma)
    assert metric.compute() > first


def test_inception_score_is_reproducible_and_leaves_the_global_random_state(real: Tensor) -> None:
    metric = inception_score(DigitsLogits())
    metric.update(real)
    before = torch.get_rng_state()
    score, deviation = metric.compute()
    assert torch.equal(torch.get_rng_state(), before)
    other = inception_score(DigitsLogits())
    other.update(real)
    assert (score, deviation) == other.compute()
    assert 1 < score <= 10


def test_to_uint8_rounds_and_clamps() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_uint8(torch.tensor([10.4, 10.6]) / 127.5 - 1).tolist() == [10, 11]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert to_uint8(torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)).tolist() == [0, 128, 255]


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with pytest.raises(FileNotFoundError, match=r"s\.npz"):
        load_statistics(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"not an \.npz"):
        load_statistics(path)
    np.savez(path, mu=np.zeros(2))
    with pytest.raises(ValueError, match=r"lacks \['sigma'\]"):
        load_statistics(path)
    np.savez(path, mu=np.zeros(2), sigma=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"mu \[2\] and sigma \[3, 3\]"):
        load_statistics(path)


def test_pickled_statistics_are_not_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.array([print], dtype=object), sigma=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_statistics(tmp_path / "s.npz")


def test_statistics_of_another_extractor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"64 features need \[64\]"):
        set_reference(fid(DigitsFeatures()), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="count=1"):
        set_reference(fid(Flat()), torch.zeros(2), torch.eye(2), count=1)


def test_an_empty_reference_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="0 images"):
        reference_statistics(fid(Flat()))
