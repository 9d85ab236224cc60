"""Every model keeps the contract."""

import pytest
import torch

from disa_framework.models import MAR, MixtureAR
from disa_framework.solvers import Cosine, LinearFlow, Process
from disa_framework.testing import ModelContract


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
