"""Every model keeps the contract."""

from pathlib import Path

import pytest
import torch

from disa_framework.models import EMIGM, MAR, NOVA, XAR, ARDiffusionModel, CausalAR, FlowAR, Harmon, SphereAR
from disa_framework.sampling.condition import Condition
from disa_framework.solvers import Process, RectifiedFlow, VPCosine
from disa_framework.testing import ModelContract
from disa_framework.toy.mixture import MixtureAR
from examples.sequence import SequenceAR
from tests.models.tiny import TINY, filled, tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_sphere, tiny_xar
from tests.models.tiny_harmon import PROMPTS, save_tokenizer, tiny_harmon
from tests.models.tiny_nova import tiny_nova


class TestMixtureAR(ModelContract):
    @pytest.fixture(params=[0, 1, 2], ids=lambda count: f"{count} classes")
    def num_classes(self, request: pytest.FixtureRequest) -> int:
        return request.param

    @pytest.fixture(params=[VPCosine(), RectifiedFlow()], ids=["cosine", "flow"])
    def process(self, request: pytest.FixtureRequest) -> Process:
        return request.param

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        bad = super().bad_conditions(model)
        return bad if model.num_classes else {"leave the condition out": torch.tensor([0, 0])}

    @pytest.fixture
    def model(self, num_classes: int, process: Process) -> MixtureAR:
        model = MixtureAR(num_tokens=6, num_components=4, num_classes=max(num_classes, 1), process=process)
        model.num_classes = num_classes  # with 0 it cannot be asked for anything
        return model


class TestMAR(ModelContract):
    @pytest.fixture(params=[1, 2], ids=["patch 1", "patch 2"])
    def model(self, request: pytest.FixtureRequest) -> MAR:
        return tiny_mar(
            latent_size=4 * request.param, latent_channels=2, patch_size=request.param, decoder_width=24,
            decoder_depth=2, head_depth=2, buffer_size=3,
        )  # fmt: skip


class TestMixtureMAR(ModelContract):
    @pytest.fixture(params=[1, 5], ids=lambda count: f"{count} components")
    def model(self, request: pytest.FixtureRequest) -> MAR:
        return tiny_mar(latent_size=8, latent_channels=2, components=request.param, decoder_depth=2)


class TestFlowMapMAR(ModelContract):
    @pytest.fixture
    def model(self) -> MAR:
        return tiny_mar(latent_size=8, latent_channels=2, self_distillation=0.25, decoder_depth=2)


class TestEMIGM(ModelContract):
    @pytest.fixture
    def model(self) -> EMIGM:
        sizes = {**TINY, "latent_size": 6, "decoder_depth": 2}
        return filled(EMIGM(**sizes), 0.2, torch.Generator().manual_seed(0))


class TestCausalAR(ModelContract):
    @pytest.fixture(params=[1, 2], ids=["patch 1", "patch 2"])
    def model(self, request: pytest.FixtureRequest) -> CausalAR:
        model = CausalAR(
            latent_size=3 * request.param, latent_channels=2, patch_size=request.param, num_classes=3, width=16,
            depth=2, heads=2, head_depth=2, head_width=16,
        )  # fmt: skip
        return filled(model, 0.2, torch.Generator().manual_seed(0))


class TestMixtureCausalAR(ModelContract):
    @pytest.fixture
    def model(self) -> CausalAR:
        model = CausalAR(
            latent_size=3, latent_channels=2, num_classes=3, width=16, depth=2, heads=2, head_depth=1, head_width=16,
            dropout=0.0, label_dropout=0.5, components=4,
        )  # fmt: skip
        return filled(model, 0.2, torch.Generator().manual_seed(0)).train()  # whose labels alone are random


class TestSphereAR(ModelContract):
    keeps_tokens = False  # which go back on the sphere

    @pytest.fixture(params=[1, 3], ids=lambda count: f"{count} class tokens")
    def model(self, request: pytest.FixtureRequest) -> SphereAR:
        return tiny_sphere(class_tokens=request.param)


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

    def condition(self, model: ARDiffusionModel) -> Condition:
        return PROMPTS

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        return {"give texts, not labels": torch.tensor([0, 1]), "must be a list of texts, got 'ab'": "ab"}


class TestNOVA(ModelContract):
    @pytest.fixture(params=["flow", "cosine"])
    def model(self, request: pytest.FixtureRequest) -> NOVA:
        return tiny_nova(process=request.param)

    def condition(self, model: ARDiffusionModel) -> Condition:
        return PROMPTS

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        return {"give texts, not labels": torch.tensor([0, 1]), "does not know 'green'": ["a red cat", "a green cat"]}


class TestSequenceAR(ModelContract):
    @pytest.fixture
    def model(self) -> SequenceAR:
        model = SequenceAR(length=6, channels=2, num_phones=5)
        return filled(model, 0.2, torch.Generator().manual_seed(0))

    def condition(self, model: ARDiffusionModel) -> Condition:
        generator = torch.Generator().manual_seed(0)
        return {"phones": torch.randint(5, (4, 6), generator=generator), "length": torch.tensor([3, 6, 1, 4])}

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        phones, length = torch.zeros(2, 6, dtype=torch.int64), torch.tensor([1, 6])
        return {
            "a dictionary of phones .* and length, got Tensor": length,
            r"phones must be \['B', 6\], 0 … 4, got": {"phones": phones[:, :5], "length": length},
            "phones must be .* got": {"phones": phones + 5, "length": length},
            r"length must be \['B'\], 1 … 6, got": {"phones": phones, "length": length + 1},
            "same number of samples": {"phones": phones, "length": length[:1]},
        }
