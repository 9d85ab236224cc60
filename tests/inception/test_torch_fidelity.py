"""The Inception path gives torch-fidelity's own figures; run by `make check-inception`, which installs torch-fidelity.

The weights are random, since the published ones cannot be had everywhere; what is compared is everything else.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from disa_framework.cli.evaluate import evaluate
from disa_framework.metrics import InceptionFeatures, inception_score, to_uint8

torch_fidelity = pytest.importorskip("torch_fidelity", reason="make check-inception", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")  # of libraries; and the sets are smaller than the features

SIZE = 352  # above Inception's 299, so that images are made smaller, where antialiasing shows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights, and two folders of 20 images each."""
    place = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        network = torch_fidelity.FeatureExtractorInceptionV3("random", ["2048"], empty)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # keeps features at the scale of pixels
    torch.save(network.state_dict(), place / "weights.pth")
    for name, grain in (("samples", 2.0), ("reference", 1.0)):
        (place / name).mkdir()
        for i in range(20):
            pixels = to_uint8(torch.randn(SIZE, SIZE, 3) * grain * torch.rand(3))
            Image.fromarray(pixels.numpy()).save(place / name / f"{i:06}.png")
    return place


@pytest.fixture(scope="module")
def published(place: Path) -> dict[str, Any]:
    """torch-fidelity's figures."""
    figures: dict[str, Any] = torch_fidelity.calculate_metrics(
        input1=str(place / "samples"), input2=str(place / "reference"), fid=True, prc=True, prc_neighborhood=3,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(place / "weights.pth"),
        batch_size=10, cuda=False, cache=False, verbose=False,
    )  # fmt: skip
    return figures


def test_figures_of_the_same_files_are_torch_fidelitys(place: Path, published: dict[str, Any]) -> None:
    found = evaluate([
        str(place / "samples"), "--reference", str(place / "reference"), "--inception", str(place / "weights.pth"),
        "--precision_recall", "true", "--batch_size", "10", "--num_workers", "0", "--trainer.accelerator", "cpu",
    ])  # fmt: skip
    assert found["fid"] == pytest.approx(published["frechet_inception_distance"], rel=1e-4)
    assert found["precision"] == pytest.approx(published["precision"])
    assert found["recall"] == pytest.approx(published["recall"])


def read(place: Path) -> Tensor:
    """Five samples."""
    files = sorted((place / "samples").iterdir())[:5]
    return torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])


def test_features_and_logits_are_those_of_the_network_and_antialiasing_changes_them(place: Path) -> None:
    weights, images = str(place / "weights.pth"), read(place)
    network = torch_fidelity.FeatureExtractorInceptionV3("other", ["2048", "logits_unbiased"], weights)
    features, logits = network(images)
    ours = InceptionFeatures(weights)
    torch.testing.assert_close(ours(images), features)
    torch.testing.assert_close(ours.logits(ours(images)), logits)
    smooth = nn.functional.interpolate(images.float(), (299, 299), mode="bilinear", antialias=True)
    assert (ours(to_uint8(smooth / 127.5 - 1)) - features).norm() > 0.05 * features.norm()


def test_an_empty_batch_and_gray_images_have_features(place: Path) -> None:
    ours, images = InceptionFeatures(str(place / "weights.pth")), read(place)
    assert ours(images[:0]).shape == (0, 2048)
    gray = images[:1, :1]
    torch.testing.assert_close(ours(gray), ours(gray.repeat(1, 3, 1, 1)))


def test_the_inception_score_is_torch_fidelitys_over_the_same_splits() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(200, 1008, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    figures = isc_features_to_metric(logits[order], splits=10, shuffle=False)
    expected = (figures["inception_score_mean"], figures["inception_score_std"])
    assert inception_score(logits) == pytest.approx(expected)


def test_other_weights_are_refused(place: Path, tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold torch-fidelity's Inception"):
        InceptionFeatures(str(tmp_path / "other.pth"))
