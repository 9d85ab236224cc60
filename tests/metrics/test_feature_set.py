"""A set of features is what its images say, each of them once, in whatever portions and order they come."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from disa_framework.callbacks import Evaluation
from disa_framework.data import RequestData
from disa_framework.data.requests import Request
from disa_framework.metrics import DigitsFeatures, DigitsLogits, InceptionFeatures
from disa_framework.metrics.feature_set import Features, FeatureSet
from disa_framework.metrics.fid import frechet_distance, inception_score, score_of_logits
from disa_framework.models import MixtureAR
from disa_framework.module import ARDiffusionModule
from tests.evaluated import Pixels

IMAGES = torch.randint(256, (40, 1, 1, 2), generator=torch.Generator().manual_seed(0)).byte()


def told(order: list[Tensor], images: Tensor = IMAGES) -> Features:
    """What portions of a set of 40 come to."""
    features = FeatureSet(Pixels(), 40, keep=True)
    for part in order:
        features.update(images[part], part)
    return features.compute()


def test_mean_and_covariance_are_those_of_the_features_and_rows_keep_their_order() -> None:
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found, points = told([*shuffled.split(7), shuffled[:0]]), IMAGES.flatten(1).double().numpy()
    np.testing.assert_allclose(found.mu, points.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(points, rowvar=False), rtol=1e-12)
    assert found.vectors is not None and found.logits is not None
    assert torch.equal(found.vectors, IMAGES.flatten(1).float())
    assert torch.equal(found.logits, Pixels().logits(found.vectors))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (list(range(39)), "1 were lost and 0 came more than once"),
        ([*range(40), 3, 4, 4], "0 were lost and 2 came more than once"),
        ([*range(39), 0], "1 were lost and 1 came more than once"),
    ],
)
def test_lost_and_repeated_images_are_noticed(order: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"of 40 images {message}"):
        told([torch.tensor(order)])


def test_images_that_do_not_belong_to_the_set_are_noticed() -> None:
    with pytest.raises(ValueError, match="of 40 images"):
        told([torch.arange(40), torch.tensor([40])], torch.cat([IMAGES, IMAGES]))


def test_fewer_images_than_features_warn_with_the_reason() -> None:
    with pytest.warns(UserWarning, match="64 images for 64 features: their covariance is singular"):
        FeatureSet(DigitsFeatures(), 64)
    FeatureSet(DigitsFeatures(), 65)


def test_a_single_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="1 image cannot be measured"):
        FeatureSet(Pixels(), 1)


def test_the_distance_of_gaussians_with_diagonal_covariance_is_known() -> None:
    a = Features(torch.tensor([1.0, 5.0]).double(), torch.tensor([4.0, 9.0]).double().diag())
    b = Features(torch.tensor([4.0, 1.0]).double(), torch.tensor([1.0, 25.0]).double().diag())
    assert frechet_distance(a, b) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-7)


def test_the_score_of_logits_is_that_of_their_images() -> None:
    images = torch.randint(256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    metric, features = inception_score(DigitsLogits()), DigitsFeatures()
    metric.update(images)
    expected = tuple(value.item() for value in metric.compute())
    assert score_of_logits(features.logits(features(images))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_drawn_pixels_are_rounded_before_they_are_measured() -> None:
    class Drawn(ARDiffusionModule):
        """Draws pixels between two bytes."""

        def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
            return torch.tensor([10.4, 10.6]).expand(len(batch.indices), 1, 1, 2) / 127.5 - 1

    features = FeatureSet(Pixels(), 5)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**options, enable_model_summary=False, callbacks=[Evaluation(features)])
    data = RequestData(5, None, batch_size=2)
    trainer.predict(Drawn(MixtureAR()), datamodule=data, return_predictions=False)
    assert features.compute().mu.tolist() == [10, 11]


def test_a_missing_library_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'disa-framework\[inception\]'"):
        InceptionFeatures("weights.pth")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_distance_is_computed_where_the_features_are() -> None:
    a, b = (Features(torch.full((3,), m).double(), torch.eye(3).double(), None, None) for m in (0.0, 1.0))
    there = [Features(f.mu.cuda(), f.sigma.cuda(), None, None) for f in (a, b)]
    assert frechet_distance(*there) == pytest.approx(frechet_distance(a, b), rel=1e-6)
