"""A set of features is what its images say, each of them once, in whatever portions and order they come."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from disa_framework.data import Request, RequestData
from disa_framework.metrics import Features, FeatureSet, InceptionFeatures, features_of
from disa_framework.metrics.collecting import Evaluation
from disa_framework.module import ARDiffusionModule
from disa_framework.toy.mixture import MixtureAR
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


def test_a_single_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="1 image cannot be measured"):
        FeatureSet(Pixels(), 1)


def test_images_at_hand_have_the_same_features() -> None:
    found, whole = features_of(Pixels(), IMAGES), told([torch.arange(40)])
    for part, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(part, expected)


class Broken(Pixels):
    """Features that are no numbers where the first pixel is below 100."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        return torch.where(features[:, :1] < 100, torch.tensor([float("nan"), float("inf")]), features)


def test_images_with_broken_features_are_counted() -> None:
    count = int((IMAGES[:, 0, 0, 0] < 100).sum())
    features = FeatureSet(Broken(), 40)
    features.update(IMAGES, torch.arange(40))
    for measure in (features.compute, lambda: features_of(Broken(), IMAGES)):
        with pytest.raises(ValueError, match=f"^{count} of 40 images have NaN or infinite features: .*$"):
            measure()


def drawn_by_a_trainer(value: float, count: int = 5) -> FeatureSet:
    """Features of pixels that Lightning's predict loop has drawn."""

    class Drawn(ARDiffusionModule):
        def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
            return torch.tensor([10.4, value]).expand(len(batch.indices), 1, 1, 2) / 127.5 - 1

    features = FeatureSet(Pixels(), count)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**options, enable_model_summary=False, callbacks=[Evaluation(features)])
    data = RequestData(count, None, batch_size=2)
    trainer.predict(Drawn(MixtureAR()), datamodule=data, return_predictions=False)
    return features


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_drawn_pixels_are_rounded_before_they_are_measured() -> None:
    assert drawn_by_a_trainer(10.6).compute().mu.tolist() == [10, 11]
    with pytest.raises(ValueError, match="the model drew NaN or infinite pixels"):
        drawn_by_a_trainer(float("nan"))
    with pytest.warns(UserWarning, match="2 images for 2 features: their covariance is singular"):
        drawn_by_a_trainer(10.6, count=2)


def test_a_missing_library_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'disa-framework\[inception\]'"):
        InceptionFeatures("weights.pth")
