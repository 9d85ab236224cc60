"""The plain samplers draw what the fast ones draw, by layers of their own, so that comparing their times is fair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks import reference
from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.schedules import PerStage
from disa_framework.solvers import DDPM, Euler, EulerMaruyama, Halves, Solver
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar

CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Any], Solver, tuple[int, ...]]] = {
    "MAR": (reference.mar, lambda: tiny_mar(latent_size=8, patch_size=2), DDPM(), (9, 7, 4, 3)),
    "FlowAR v1": (reference.flowar, tiny_flowar, Euler(Halves()), (8, 6, 3)),
    "FlowAR v2": (reference.flowar, lambda: tiny_flowar(cross_attention=True), Euler(Halves()), (8, 6, 3)),
    "xAR": (reference.xar, tiny_xar, EulerMaruyama(), (6, 4, 3, 1)),
}


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(2.0, "constant", (0.2, 0.8)), Guidance()], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_plain_and_fast_samplers_draw_the_same(name: str, guidance: Guidance) -> None:
    plain, make, solver, budget = CASES[name]
    model: ARDiffusionModel = make()
    labels, places = torch.tensor([0, 2, 1]), torch.arange(3)
    fast = generate(model, labels, SamplingConfig(PerStage(budget), solver, len(budget), guidance), seed=4)
    drawn = plain(model, labels, budget, solver, guidance, PhiloxNoise(4, places))
    torch.testing.assert_close(drawn, fast, rtol=0, atol=1e-4 * fast.abs().max().item())
    assert fast.std() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_plain_samplers_call_no_layer_of_the_models(name: str) -> None:
    plain, make, solver, budget = CASES[name]
    called: list[str] = []

    def note(module: nn.Module, inputs: Any) -> None:
        called.append(type(module).__name__)

    with register_module_forward_pre_hook(note):
        plain(make(), torch.tensor([0, 2, 1]), budget, solver, Guidance(3.0), PhiloxNoise(4, torch.arange(3)))
    assert not called
