"""A noise scheduler that gives each token of speech steps of its own.

VibeVoice draws a token, the latent of 1/7.5 s, with a diffusion head. It takes any scheduler for that which has
`set_timesteps`, called once a token, `timesteps`, and `step`, called once an evaluation of the head.

Letters: `B` phrases, `D` token channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.history import StageRecord, Trajectory
from disa_framework.sampling.noise import PhiloxNoise, check_seed
from disa_framework.solvers import Nodes, Table, VPCosine
from disa_framework.solvers.table import Step, state_precision

PROCESS = VPCosine(predicts="v")
"""What VibeVoice's head was trained on."""


class AnnealedScheduler:
    """Give it to `generate` as `noise_scheduler`, whose `num_diffusion_steps` is then not heeded.

    The place of a token is how many tokens its call of `generate` has drawn before. Phrases of a batch share the steps
    of a place.

    Args:
        sampling: schedule and solver. `num_stages` says for how many places the schedule is; those behind have the
            steps of the last one.
        seed: of the noise of stochastic solvers, which for row `i` of a token is a function of seed, place and `i`.
            What tokens begin as is drawn by `generate`, from PyTorch's global generator.

    Attributes:
        records: what each token of the last call left behind, such as its steps and head evaluations.

    Raises:
        ValueError: if the config has parts that only `generate` decides about, or solver and process do not fit.
    """

    def __init__(self, sampling: SamplingConfig, seed: int = 0) -> None:
        if sampling != SamplingConfig(sampling.schedule, sampling.solver, sampling.num_stages):
            raise ValueError(
                "schedule, solver and num_stages are all that speech is drawn with: leave guidance, cache, order and "
                "stage_sizes out, and give guidance_scale to generate"
            )
        check_seed(seed)
        self.sampling, self.seed, self.budget = sampling, seed, sampling.budget
        if any(self._table(place, steps).start != 1 for place, steps in enumerate(self.budget)):
            raise ValueError("generate draws what tokens begin as: leave the solver's temperature at 1")
        self.records: list[StageRecord] = []
        self._token: _Token | None = None

    def _table(self, place: int, steps: int) -> Table:
        return self.sampling.solver.at(place).table(PROCESS, steps)

    def set_timesteps(self, num_inference_steps: int | None = None) -> None:
        """Begins a token, which has the steps of its place whatever number is given."""
        place = min(len(self.records), len(self.budget) - 1)
        steps = self.sampling.schedule.at(place, self.budget, self.records)
        self._token = _Token(len(self.records), steps, self._table(place, steps), self.sampling.schedule.adapts)

    @property
    def timesteps(self) -> Tensor:
        """Times at which the head is evaluated for the token that has just begun.

        `generate` also looks whether a scheduler has any, before its first token. With no token just begun, they are
        none, and what earlier calls have drawn is forgotten, even if they were interrupted.
        """
        if self._token is None or self._token.asked:
            self.records, self._token = [], None
            return torch.empty(0)
        self._token.asked = True
        return self._token.table.nodes.on(torch.device("cpu"))

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> _Stepped:
        """The token after an evaluation of the head.

        Args:
            model_output: of the head, guided, `[2 B, D]`; the second half is the first one again, as of `sample`.
            timestep: the times are known.
            sample: what the head was given. Between steps the scheduler keeps it in float32 at least.
        """
        assert self._token is not None, "set_timesteps comes first"
        token, B = self._token, len(sample) // 2
        if token.row == 0:
            token.begin(sample[:B], self.seed)
        x = token.advance(model_output[:B], sample.dtype)
        if token.row == len(token.table):
            self.records.append(token.record(x))
        return _Stepped(torch.cat((x, x)))


class _Stepped(NamedTuple):
    """As a scheduler of diffusers answers."""

    prev_sample: Tensor


class _Token:
    """A token on its way through a table, whose head is evaluated by somebody else."""

    def __init__(self, place: int, steps: int, table: Table, watched: bool) -> None:
        self.place, self.steps, self.table, self.row, self.asked = place, steps, table, 0, False
        self.trajectory = Trajectory(PROCESS) if watched else None
        self.head = (self.trajectory.watch(self._given) if self.trajectory else self._given)(table.nodes)

    def _given(self, nodes: Nodes) -> Step:
        return lambda x, i: self.out

    def begin(self, x: Tensor, seed: int) -> None:
        """Takes the noise `[B, D]` that it begins as, and the seed of what steps add."""
        x, draws = x.to(state_precision(x.dtype)), self.table.draws
        self.state, self.noise = self.table.begin(x), x[None]
        if draws > 1:
            source = PhiloxNoise(seed, torch.arange(len(x)), x.device)
            self.noise = source.normal(self.place, x.shape[1:], draws, x.dtype)

    def advance(self, out: Tensor, head_dtype: torch.dtype) -> Tensor:
        """The token `[B, D]` after the next row, for which the head gave `out`."""
        self.out = out
        self.state = self.table.advance(self.state, self.head, self.row, self.noise, head_dtype)
        self.row += 1
        return self.state[0].to(head_dtype)

    def record(self, x: Tensor) -> StageRecord:
        """What it leaves behind, drawn as `x`."""
        signals = self.trajectory.signals(x) if self.trajectory else None
        return StageRecord(self.place, self.steps, len(self.table), 1, signals)
