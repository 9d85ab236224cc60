"""What every solver has to hold, and the exact head of a Gaussian to hold it against."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields
from functools import partial

import pytest
import torch
from torch import Tensor

from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.solvers import Nodes, Process, RectifiedFlow, Solver, VPCosine
from disa_framework.solvers.table import Denoiser, Normal, Step

MEAN, STD = 0.3, 0.5
"""Of the tokens in these tests."""


def gaussian_head(process: Process, mean: float = MEAN, std: float = STD) -> Denoiser:
    """The best possible head for independent tokens from `N(mean, std^2)`, in closed form."""

    def denoise(nodes: Nodes) -> Step:
        def step(x: Tensor, i: int) -> Tensor:
            alpha, sigma = nodes.alphas[i], nodes.sigmas[i]
            share = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
            out = process.target(mean + alpha * std**2 * share, sigma * share, alpha, sigma)
            # The value 0 asks for a variance half-way between the bounds.
            return torch.cat((out, torch.zeros_like(out)), dim=-1) if process.learns_variance else out

        return step

    return denoise


@dataclass
class Counted:
    """A head that knows how often it was evaluated."""

    denoise: Denoiser
    calls: int = 0

    def __call__(self, nodes: Nodes) -> Step:
        step = self.denoise(nodes)

        def counted(x: Tensor, i: int) -> Tensor:
            self.calls += 1
            return step(x, i)

        return counted


def normals(indices: Sequence[int], shape: tuple[int, int] = (3, 2)) -> Normal:
    """Noise of the samples `indices`, with tokens of the given shape."""
    return partial(PhiloxNoise(7, torch.tensor(indices)).normal, 0, shape)


class SolverContract:
    """Subclass and override the fixtures `solver` and `process`.

    Attributes:
        steps: step counts the solver is asked for.
        tolerance: of mean and standard deviation with an exact head and 100 steps, in units of the tokens'
            standard deviation. The 2**14 samples know both to 0.01; a start at timestep 950, which is taken
            for pure noise, moves the mean by 0.02; a method of first order misses 0.03 of the spread.
    """

    steps: Sequence[int] = (*range(1, 13), 25, 50)
    tolerance: float = 0.06

    @pytest.fixture
    def solver(self) -> Solver:
        raise NotImplementedError("override the fixture `solver`")

    @pytest.fixture
    def process(self) -> Process:
        raise NotImplementedError("override the fixture `process`")

    def wrong_process(self, process: Process) -> Process | None:
        """A process that the solver has to refuse; `None` for one that fits all."""
        return RectifiedFlow() if isinstance(process, VPCosine) else VPCosine()

    def test_coefficients_are_finite(self, solver: Solver, process: Process) -> None:
        for steps in self.steps:
            for row in solver.table(process, steps).rows:
                assert all(math.isfinite(getattr(row, field.name)) for field in fields(row)), (steps, row)

    def test_evaluations_are_counted_and_within_the_budget(self, solver: Solver, process: Process) -> None:
        for steps in self.steps:
            head = Counted(gaussian_head(process))
            solver.sample(head, process, steps, normals([0]))
            assert head.calls == solver.evaluations(process, steps) <= steps, steps

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_tokens_have_the_shape_of_the_noise_and_the_dtype_of_the_head(
        self, solver: Solver, process: Process, dtype: torch.dtype
    ) -> None:
        for steps in self.steps:
            tokens = solver.sample(gaussian_head(process), process, steps, normals([0, 1, 2]), dtype)
            assert tokens.shape == (3, 3, 2) and tokens.dtype == dtype
            assert tokens.isfinite().all(), steps

    def test_the_same_noise_gives_the_same_tokens(self, solver: Solver, process: Process) -> None:
        for steps in self.steps:
            first, second = (solver.sample(gaussian_head(process), process, steps, normals([4, 8])) for _ in range(2))
            assert torch.equal(first, second), steps

    def test_a_sample_does_not_depend_on_its_batch(self, solver: Solver, process: Process) -> None:
        for steps in self.steps:
            batch, alone = (
                solver.sample(gaussian_head(process), process, steps, normals(indices))
                for indices in ([3, 0, 6, 1, 9], [6])
            )
            torch.testing.assert_close(batch[2:3], alone, rtol=1e-6, atol=1e-6)

    def test_it_is_a_value_and_equal_ones_share_their_tables(self, solver: Solver, process: Process) -> None:
        twin = copy.deepcopy(solver)
        assert twin == solver and hash(twin) == hash(solver)
        for field in fields(solver):  # type: ignore[arg-type]
            with pytest.raises(FrozenInstanceError):
                setattr(solver, field.name, None)
        for steps in self.steps:
            assert twin.table(copy.deepcopy(process), steps) is solver.table(process, steps)

    def test_a_process_that_does_not_fit_is_refused(self, solver: Solver, process: Process) -> None:
        wrong = self.wrong_process(process)
        if wrong is None:
            pytest.skip("this solver fits every process")
        with pytest.raises(ValueError, match="use "):
            solver.table(wrong, max(self.steps))

    @pytest.mark.parametrize("steps", [0, -1])
    def test_less_than_one_step_is_refused(self, solver: Solver, process: Process, steps: int) -> None:
        with pytest.raises(ValueError, match="step"):
            solver.table(process, steps)

    def test_an_exact_head_gives_the_right_distribution(self, solver: Solver, process: Process) -> None:
        generator = torch.Generator().manual_seed(1)

        def normal(draws: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(draws, 1, 2**14, 1, generator=generator, dtype=dtype)

        tokens = solver.sample(gaussian_head(process), process, 100, normal)
        assert tokens.mean().item() == pytest.approx(MEAN, abs=self.tolerance * STD)
        assert tokens.std().item() == pytest.approx(STD, rel=self.tolerance)
