"""Drawing a run from Python: into a folder, or to measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from disa_framework import SamplingConfig
from disa_framework.callbacks import Arrays, SampleFolder
from disa_framework.metrics.evaluation import Comparison, evaluate
from disa_framework.module import ARDiffusionModule
from disa_framework.prediction import draw, measure
from disa_framework.schedules import Constant
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning", "ignore:Couldn't infer the batch indices",
    "ignore:.*covariance is singular",
)  # fmt: skip

QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
LABELS = torch.tensor([3, 7, 0])
FEW = SamplingConfig(Constant(2), num_stages=4)


def test_measured_while_drawn_is_as_measured_from_files(tmp_path: Path) -> None:
    module = ARDiffusionModule(tiny_mar(latent_size=8, num_classes=10), FEW)
    folder, other = SampleFolder(tmp_path / "drawn"), SampleFolder(tmp_path / "reference")
    how: dict[str, Any] = {"count": 7, "batch_size": 3, "trainer": QUIET}
    drawn = draw(module, folder, LABELS, **how, form="both")
    assert drawn and (drawn.count, drawn.evaluations) == (7, 8) and drawn.seconds and folder.packed() == 7
    draw(module.drawing(seed=1), other, LABELS, **how)
    comparison = Comparison(str(other.path), DigitsFeatures())
    found, expected = measure(module, comparison, LABELS, **how), evaluate(folder.path, comparison)
    assert found and expected and found["fid"] == pytest.approx(expected["fid"])
    assert found["images"] == 7 and found["identity"]["condition"] == folder.facts()["identity"]["condition"]


def test_unconditional_samples_need_a_count(tmp_path: Path) -> None:
    module, folder = ARDiffusionModule(MixtureAR(), FEW), SampleFolder(tmp_path, writer=Arrays())
    with pytest.raises(ValueError, match="need a count"):
        draw(module, folder, trainer=QUIET)
    draw(module, folder, count=3, trainer=QUIET)
    assert folder.finished() == {0, 1, 2}


def test_a_condition_is_for_as_many_samples_as_it_has(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, writer=Arrays())
    draw(ARDiffusionModule(MixtureAR(num_classes=8), FEW), folder, LABELS, trainer=QUIET)
    assert folder.finished() == {0, 1, 2}
