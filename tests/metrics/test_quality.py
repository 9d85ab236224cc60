"""What a study makes small is the Fréchet distance that everybody computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from disa_framework.metrics import features_of, save_statistics, to_uint8
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData
from disa_framework.toy.mixture import MixtureAR


class NoReference(DigitsData):
    reference_images = property()


def test_fid_is_torchmetrics_fid_of_the_images_against_data_or_statistics(tmp_path: Path) -> None:
    network, data = DigitsFeatures(), DigitsData()
    images = data.val_dataset().tensors[0][:100] + 0.001  # not quite bytes
    theirs = FrechetInceptionDistance(network)
    theirs.update(data.reference_images(), real=True)
    theirs.update(to_uint8(images), real=False)
    save_statistics(tmp_path / "digits.npz", features_of(network, data.reference_images()))
    module = ARDiffusionModule(MixtureAR())
    for reference in (data, str(tmp_path / "digits.npz")):
        quality = FID(network, reference)
        metric = quality.metric(module, None)
        for part in images.split(30):
            quality.update(metric, part)
        assert metric.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert not any("metric" in name or "classifier" in name for name in module.state_dict())


def test_data_without_reference_images_are_refused() -> None:
    with pytest.raises(ValueError, match="NoReference has no reference_images"):
        FID(DigitsFeatures(), NoReference())


def test_a_reference_of_one_image_is_refused() -> None:
    class Single(DigitsData):
        def reference_images(self) -> torch.Tensor:
            return super().reference_images()[:1]

    with pytest.raises(ValueError, match="1 image cannot be measured"):
        FID(DigitsFeatures(), Single()).metric(ARDiffusionModule(MixtureAR()), None)
