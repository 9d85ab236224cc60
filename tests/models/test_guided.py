"""A head that knows nothing of guidance, made into a guided step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from disa_framework.guidance import Guidance
from disa_framework.models import GuidedStep
from disa_framework.models.graphs import Evaluator, Graphs
from disa_framework.solvers import DDPM, Cosine, DPMSolverPP, EulerMaruyama, Heun, LinearFlow, Nodes, Process, Solver
from disa_framework.solvers.table import Denoiser

B, N, D = 3, 2, 4
SHIFT = torch.tensor([1.0, 5.0]).repeat_interleave(B)[:, None, None]
"""What tells the branches apart: conditional rows first."""


class Head:
    """`weight x + time + shift`, and a variance value if asked for; knows with how many rows it was called."""

    def __init__(self, process: Process, weight: float = 0.1) -> None:
        self.process, self.weight = process, weight
        self.rows: Counter[int] = Counter()

    def __call__(self, x: Tensor, time: Tensor, shift: Tensor) -> Tensor:
        self.rows[len(x)] += 1
        out = self.weight * x + time + shift[: len(x)].to(x.dtype)
        return torch.cat((out, 0.01 * out), dim=-1) if self.process.learns_variance else out

    def denoiser(self, graphs: Graphs | None, guidance: Guidance, scale: float) -> Denoiser:
        def denoise(nodes: Nodes) -> GuidedStep:
            times = 1e-3 * nodes.on(torch.device("cpu"))
            acts = guidance.acts_among(map(self.process.unit_time, nodes.times), scale)
            return GuidedStep(self, Evaluator(graphs, {"shift": SHIFT}), zip(times), acts, scale)

        return denoise


def normal(draws: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(draws, B, N, D, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_output_is_guided_and_the_variance_value_is_the_conditional_branchs() -> None:
    head = Head(Cosine(learns_variance=True))
    nodes = head.process.nodes([900, 500, 100])
    step = head.denoiser(None, Guidance(3.0, interval=(0.0, 0.5)), 3.0)(nodes)
    x = torch.randn(B, N, D)
    with_class, without = head(torch.cat((x, x)), torch.tensor(0.5), SHIFT)[..., :D].chunk(2)
    out, value = step(x, 1).chunk(2, dim=-1)
    torch.testing.assert_close(out, without + 3 * (with_class - without))
    torch.testing.assert_close(value, 0.01 * with_class)
    head.rows.clear()
    assert step(x, 0).shape == step(x, 2).shape == (B, N, 2 * D)
    assert head.rows == {B: 1, 2 * B: 1}  # at 900 guidance does not act
    head.rows.clear()
    head.denoiser(None, Guidance(3.0), 1.0)(nodes)(x, 1)
    assert head.rows == {B: 1}  # nor at a stage whose scale is 1


@torch.inference_mode()
def test_the_scale_is_not_rounded_to_the_precision_of_the_head() -> None:
    head = Head(LinearFlow(), weight=0.0)
    nodes = head.process.nodes([0.0])
    x = torch.zeros(B, N, D, dtype=torch.bfloat16)
    for graphs in (None, Graphs()):
        out = head.denoiser(graphs, Guidance(2.7), 2.7)(nodes)(x, 0)
        assert out.flatten().tolist() == pytest.approx([5 + 2.7 * (1 - 5)] * out.numel(), rel=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (Cosine(learns_variance=True), DDPM(temperature=0.9)),
        (Cosine(), DDPM()),
        (Cosine(), DPMSolverPP(order=3)),
        (LinearFlow(), Heun()),
        (LinearFlow(), EulerMaruyama()),
    ],
)
def test_rows_that_are_done_at_once_give_what_head_and_update_give(
    process: Process, solver: Solver, dtype: torch.dtype
) -> None:
    head, guidance = Head(process), Guidance(2.5, interval=(0.1, 0.7))
    graphs = Graphs()
    for steps in (1, 2, 3, 7, 12):
        plain, fused = (
            solver.sample(head.denoiser(kept, guidance, 2.5), process, steps, normal, dtype) for kept in (None, graphs)
        )
        assert fused.dtype == plain.dtype == dtype
        torch.testing.assert_close(fused, plain, rtol=1e-5 if dtype != torch.bfloat16 else 2e-2, atol=1e-5)
    assert len(graphs)
