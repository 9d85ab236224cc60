"""A run is gone on with by the same run alone, however that is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.callbacks import Arrays, SampleFolder
from disa_framework.module import ARDiffusionModule
from disa_framework.prediction import draw
from disa_framework.resuming import claim, differing, digest_of, fingerprint
from disa_framework.runtime.products import OneDNNLinear
from disa_framework.sampling.condition import Condition
from disa_framework.schedules import Adaptive, Constant, Linear
from disa_framework.solvers import DDPM
from disa_framework.tokenizers import Autoencoder, Identity, Tokenizer
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar
from tests.prompted import PromptedMixture

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning", "ignore:Couldn't infer the batch indices",
    "ignore:Total length of",
)  # fmt: skip

FEW = SamplingConfig(Constant(2), num_stages=4)
ADAPTIVE = replace(FEW, schedule=Adaptive(threshold=1.0, low=1, high=3))
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def run(folder: Path, batch_size: int = 8, condition: Condition | None = None, **options: Any) -> SampleFolder:
    """Draws eight samples into a folder, and loses half of them."""
    module = ARDiffusionModule(**{"model": MixtureAR(), "sampling": FEW, **options})
    condition = torch.tensor([0]) if condition is None else condition
    drawn = draw(module, SampleFolder(folder, writer=Arrays()), condition, 8, batch_size=batch_size, trainer=QUIET)
    assert drawn is not None and drawn.folder.finished() == set(range(8))
    for index in range(4, 8):
        drawn.folder.file(index).unlink()
    return drawn.folder


class Twice(Tokenizer):
    """Has the plain attribute `gain`."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def encode(self, images: Tensor) -> Tensor:
        return images / self.gain

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.gain


def changed_weights() -> nn.Module:
    model = tiny_mar()
    nn.init.constant_(model.mask_token, 0.1)
    return model


MAR: dict[str, Any] = {"model": tiny_mar()}
PROMPTED: dict[str, Any] = {"model": PromptedMixture(), "condition": ["a cat", "two dogs"]}
COOLER = replace(FEW, solver=DDPM(temperature=0.9))


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({}, {"seed": 1}, "seed"),
        ({}, {"model": MixtureAR(seed=5)}, "model"),
        (MAR, {"model": changed_weights()}, "model"),
        ({}, {"sampling": replace(FEW, guidance=Guidance(2.0))}, "sampling.guidance.scale"),
        ({}, {"sampling": COOLER}, "sampling.solver.init_args.temperature"),
        ({}, {"sampling": replace(FEW, schedule=Constant(3))}, "sampling.schedule.init_args.steps"),
        ({}, {"sampling": replace(FEW, num_stages=5)}, "sampling.num_stages"),
        (MAR, {**MAR, "sampling": replace(FEW, cache=Lazy())}, "sampling.cache"),
        ({}, {"tokenizer": Identity(4.0)}, "tokenizer"),
        ({"tokenizer": Twice()}, {"tokenizer": Twice(3)}, "tokenizer"),
        (PROMPTED, {**PROMPTED, "condition": ["a cat", "two cats"]}, "condition"),
        ({"sampling": ADAPTIVE}, {"sampling": ADAPTIVE, "batch_size": 2}, "batch_size"),
    ],
)
def test_another_run_is_refused_and_told_what_differs(
    first: dict[str, Any], second: dict[str, Any], differs: str, tmp_path: Path
) -> None:
    folder = run(tmp_path, **first)
    with pytest.raises(ValueError, match=rf"holds samples made otherwise \({differs} differ; see .*samples\.json"):
        run(tmp_path, **second)
    assert folder.finished() == set(range(4))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"batch_size": 2}),
        ({"sampling": ADAPTIVE}, {"sampling": ADAPTIVE}),
        (MAR, {**MAR, "attention": "auto"}),
        ({}, {"tokenizer": Identity()}),
        (PROMPTED, {"model": PromptedMixture(), "condition": ("a cat", "two dogs")}),
        ({}, {"condition": torch.tensor([0], dtype=torch.int64)}),
        ({"sampling": replace(FEW, schedule=Linear(3, 2))}, {"sampling": replace(FEW, schedule=Linear(3.0, 2))}),  # type: ignore[arg-type]
    ],
)
def test_the_same_run_goes_on_however_it_is_computed(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    run(tmp_path, **first)
    run(tmp_path, **second)


def test_a_run_may_be_made_longer(tmp_path: Path) -> None:
    module, folder = ARDiffusionModule(MixtureAR(), FEW), SampleFolder(tmp_path, writer=Arrays())
    for count in (3, 8):
        draw(module, folder, torch.tensor([0]), count, trainer=QUIET)
    assert folder.finished() == set(range(8)) and folder.facts()["num_images"] == 8


# --- modules ----------------------------------------------------------------------------------------------


def faster(model: nn.Module) -> None:
    for part in model.modules():
        if type(part) is nn.Linear:
            part.__class__ = OneDNNLinear


@pytest.mark.parametrize(
    "change",
    [
        nn.Module.train,
        nn.Module.eval,
        faster,
        lambda model: ARDiffusionModule(model, attention="auto"),
        lambda model: ARDiffusionModule(model, compile=True),
    ],
)
@pytest.mark.filterwarnings("ignore:drawing without compilation", "ignore:.torch.jit.script_method")
def test_a_module_is_the_same_however_it_computes(change: Callable[[nn.Module], object]) -> None:
    before, model = digest_of(tiny_mar()), tiny_mar()
    change(model)
    assert digest_of(model) == before


def test_a_module_is_told_by_its_class_its_options_its_weights_and_its_tables() -> None:
    pytest.importorskip("diffusers")
    vae: dict[str, Any] = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "latent_channels": 4}
    torch.manual_seed(0)
    modules: list[nn.Module] = [
        MixtureAR(), MixtureAR(seed=1), PromptedMixture(), tiny_mar(), tiny_mar(std=0.1), changed_weights(), Identity(),
        Twice(), Twice(3), nn.Linear(2, 3), nn.Linear(2, 3), nn.Dropout(0.1), nn.Dropout(0.2), Autoencoder(**vae),
        Autoencoder(**vae),
    ]  # fmt: skip
    torch.manual_seed(1)
    plain = Autoencoder(**vae)
    torch.manual_seed(1)
    tiled = Autoencoder(**vae, tiling=True)
    digests = [digest_of(module) for module in (*modules, plain, tiled)]
    assert len(set(digests)) == len(digests)


# --- manifests --------------------------------------------------------------------------------------------

IDENTITY = {"steps": (3, 2), "seed": 0, "model": {"width": 8, "depth": None}}


def test_identities_are_compared_as_a_file_holds_them() -> None:
    known = json.loads(json.dumps(IDENTITY))
    assert differing(known, IDENTITY) == ""
    assert differing(known, {**IDENTITY, "steps": (3, 1), "cache": "Lazy"}) == "cache, steps"
    assert differing(known, {"steps": [3, 2], "model": {"width": 9, "depth": None}}) == "model.width, seed"


def test_a_fingerprint_is_short_and_of_what_is_known() -> None:
    assert fingerprint(IDENTITY) == fingerprint(json.loads(json.dumps(dict(reversed(IDENTITY.items())))))
    assert len(fingerprint(IDENTITY)) == 8 and fingerprint(IDENTITY) != fingerprint({**IDENTITY, "seed": 1})


def test_a_folder_is_claimed_once_and_then_compared(tmp_path: Path) -> None:
    manifest = tmp_path / "it.json"
    with pytest.raises(ValueError, match="holds shards that nothing describes"):
        claim(manifest, IDENTITY, True, "shards")
    for occupied in (False, True):
        claim(manifest, IDENTITY, occupied, "shards")
    with pytest.raises(ValueError, match=r"holds shards made otherwise \(seed differ"):
        claim(manifest, {**IDENTITY, "seed": 1}, True, "shards")
    for damage in ("", "{", "[]", "{}", '{"identity": 3}'):
        manifest.write_text(damage)
        with pytest.raises(ValueError, match="is damaged"):
            claim(manifest, IDENTITY, True, "shards")
