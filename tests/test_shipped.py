"""The models that come with the package, and the recipes for them and for the published systems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from disa_framework import SamplingConfig
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from disa_framework.files import RECIPES
from disa_framework.hub import load_model
from disa_framework.models import MAR, XAR, ARDiffusionModel, CausalAR, FlowAR
from disa_framework.toy.classifier import FashionFeatures
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar

NAMES = ("best", "balanced", "fast")
FOLDERS = sorted({str(path.parent.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")})
SHIPPED = {"fashion/mar": MAR, "fashion/flowar": FlowAR, "fashion/xar": XAR, "fashion/causal": CausalAR}
MODELS: dict[str, Callable[[], ARDiffusionModel]] = {
    "fashion/mar": lambda: load_model("fashion/mar"),
    "fashion/flowar": lambda: load_model("fashion/flowar"),
    "fashion/xar": lambda: load_model("fashion/xar"),
    "fashion/causal": lambda: load_model("fashion/causal"),
    "mar": lambda: tiny_mar(latent_size=16),
    "harmon": lambda: tiny_mar(latent_size=16),  # whose stages and head it has
    "flowar": tiny_flowar,
    "xar": tiny_xar,
}


@pytest.mark.parametrize(("name", "kind"), SHIPPED.items())
def test_its_weights_have_a_name_in_python_and_draw_clothes_without_a_checkpoint(
    name: str, kind: type[ARDiffusionModel], tmp_path: Path
) -> None:
    folder = predict(["--config", name, "--num_images", "100", "--output", str(tmp_path), "--sampling", "fast"])
    images, labels, network = folder.read(range(100)), torch.arange(100) % 10, FashionFeatures()
    assert images.shape == (100, 1, 28, 28)
    assert (network.logits(network(images)).argmax(dim=1) == labels).double().mean() > 0.7
    assert isinstance(load_model(name), kind)


@pytest.mark.parametrize("folder", FOLDERS)
def test_recipes_draw_with_what_they_are_for(folder: str) -> None:
    assert {path.stem for path in (RECIPES / folder).iterdir()} == {*NAMES}
    model, costs = MODELS[folder](), []
    for name in NAMES:
        path = RECIPES / folder / f"{name}.yaml"
        costs.append(model.settle(SamplingConfig.load(path)).evaluations(model.process))
        assert path.read_text().startswith("# ")  # says where it was found
    assert costs == sorted(costs, reverse=True) and len({*costs}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "fashion/mar", "--sampling", "faster"], "no recipe 'faster': .* balanced, best, fast"),
        (["--config", "digits/mar", "--sampling", "fast"], "no recipes come with this configuration"),
        (["--config", "fashion/mar", "--model.encoder_width", "48"], "does not fit the MAR of the configuration"),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        predict([*options, "--output", str(tmp_path / "drawn")])


def test_a_study_needs_no_checkpoint_nor_data(tmp_path: Path) -> None:
    small = ["--trials", "2", "--rungs", "[20]", "--batch_size", "10", "--seeds", "1", "--evaluations", "32"]
    without = ["--calibration", "null", "--fitting", "null", "--num_stages", "16"]
    found = search(["--config", "fashion/search", *small, *without, "--output", str(tmp_path)])
    assert found.cost <= 32 and yaml.safe_load((tmp_path / "best.yaml").read_text())
