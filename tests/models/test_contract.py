"""Every model keeps the contract."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from disa_framework.models import MAR, XAR, ARDiffusionModel, CausalAR, FlowAR, Harmon, MixtureAR
from disa_framework.models.base import Condition
from disa_framework.solvers import Cosine, LinearFlow, Process
from disa_framework.testing import ModelContract
from tests.models.tiny_flow import tiny_flowar, tiny_xar
from tests.models.tiny_harmon import PROMPTS, save_tokenizer, tiny_harmon


class TestMixtureAR(ModelContract):
    @pytest.fixture(params=[1, 2], ids=["1 class", "2 classes"])
    def num_classes(self, request: pytest.FixtureRequest) -> int:
        return request.param

    @pytest.fixture(params=[Cosine(), LinearFlow()], ids=["cosine", "flow"])
    def process(self, request: pytest.FixtureRequest) -> Process:
        return request.param

    @pytest.fixture
    def model(self, num_classes: int, process: Process) -> MixtureAR:
        return MixtureAR(num_tokens=6, num_components=4, num_classes=num_classes, process=process)


class TestMAR(ModelContract):
    @pytest.fixture(params=[1, 2], ids=["patch 1", "patch 2"])
    def model(self, request: pytest.FixtureRequest) -> MAR:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MAR(
                latent_size=4 * request.param, latent_channels=2, patch_size=request.param, num_classes=3,
                encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=24, decoder_depth=2,
                decoder_heads=2, head_depth=2, head_width=16, buffer_size=3,
            )  # fmt: skip
            for parameter in model.parameters():  # some of which start at zero
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()


class TestCausalAR(ModelContract):
    @pytest.fixture(params=[1, 2], ids=["patch 1", "patch 2"])
    def model(self, request: pytest.FixtureRequest) -> CausalAR:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CausalAR(
                latent_size=3 * request.param, latent_channels=2, patch_size=request.param, num_classes=3,
                width=16, depth=2, heads=2, head_depth=2, head_width=16,
            )  # fmt: skip
            for parameter in model.parameters():  # some of which start at zero
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()


class TestFlowAR(ModelContract):
    keeps_tokens = False  # every scale draws the whole image again

    @pytest.fixture(params=[False, True], ids=["self-attention", "cross-attention"])
    def model(self, request: pytest.FixtureRequest) -> FlowAR:
        return tiny_flowar(cross_attention=request.param)


class TestXAR(ModelContract):
    @pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n * n} cells")
    def model(self, request: pytest.FixtureRequest) -> XAR:
        return tiny_xar(cells_per_side=request.param)


class TestHarmon(ModelContract):
    @pytest.fixture(params=[None, (48, 32)], ids=["native size", "other size"])
    def model(self, request: pytest.FixtureRequest, tmp_path: Path) -> Harmon:
        return tiny_harmon(save_tokenizer(tmp_path), image_size=request.param)

    def condition(self, model: ARDiffusionModel, indices: Tensor) -> Condition:
        return [PROMPTS[i % len(PROMPTS)] for i in indices.tolist()]

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        return {"give texts, not labels": torch.tensor([0, 1]), "must be a list of texts, got 'ab'": "ab"}
