"""Compiled models draw what others draw, and are not compiled again for other step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.nn.transformer import Block
from disa_framework.runtime.compiling import compile_regions, missing_for_compilation
from disa_framework.schedules import Constant, PerStage, StepSchedule
from disa_framework.solvers import DDPM, Euler, Solver
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_sphere, tiny_xar
from tests.models.tiny_harmon import PROMPTS
from tests.models.tiny_nova import tiny_nova

CASES: dict[str, tuple[Callable[[], ARDiffusionModel], Solver, PerStage]] = {
    "MAR": (lambda: tiny_mar(latent_size=8, patch_size=2), DDPM(), PerStage((9, 8, 7, 6, 5, 4, 3, 2))),
    "FlowAR v1": (tiny_flowar, Euler(), PerStage((7, 5, 2))),
    "FlowAR v2": (lambda: tiny_flowar(cross_attention=True), Euler(), PerStage((7, 5, 2))),
    "NOVA": (tiny_nova, Euler(), PerStage((7, 5, 4, 2))),
    "xAR": (tiny_xar, Euler(), PerStage((7, 5, 4, 2))),
    "SphereAR": (tiny_sphere, Euler(), PerStage((7, 6, 5, 4, 3, 2, 2, 2, 2))),
}


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """Forgets what was compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(model: ARDiffusionModel, solver: Solver, schedule: StepSchedule, stages: int) -> Tensor:
    sampling = SamplingConfig(schedule, solver, stages, Guidance(2.0, interval=(0, 0.8)))
    return generate(model, torch.tensor([2, 0, 1]) if model.num_classes else PROMPTS[:3], sampling)


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_model_draws_the_same_and_is_compiled_once_for_all_step_counts(name: str) -> None:
    make, solver, budget = CASES[name]
    stages = len(budget.steps)
    model = make()
    expected = draw(model, solver, budget, stages)
    keys = list(model.state_dict())
    graphs: list[Any] = []

    def compile_as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_regions(model, backend=compile_as_it_is)
    compiled = draw(model, solver, budget, stages)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    known = len(graphs)
    assert known > 0
    draw(model, solver, Constant(11), stages)
    assert len(graphs) == known
    assert list(model.state_dict()) == keys


@pytest.mark.skipif(missing_for_compilation() is not None, reason="there is no compiler")
@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated")
def test_compiled_to_machine_code_a_block_computes_the_same() -> None:
    block = Block(16, 2).eval()
    with torch.inference_mode():
        inputs = [torch.randn(2, length, 16) for length in (3, 9)]
        expected = [block(x) for x in inputs]
        compile_regions(block)
        for x, out in zip(inputs, expected, strict=True):
            torch.testing.assert_close(block(x), out, rtol=0, atol=1e-5)


def test_without_a_compiler_it_draws_anyway_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "missing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="without compilation: there is no C\\+\\+ compiler"):
        module = ARDiffusionModule(tiny_mar(), SamplingConfig(Constant(2)), compile=True)
    assert module.draw(None, torch.arange(2)).shape == (2, 1, 4, 4)
