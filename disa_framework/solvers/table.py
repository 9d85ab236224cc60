"""A solver is a table, and this is the loop that runs any of them.

Every sampler here is linear in the state, the network outputs and the noise. Row `i`:

    m_i     = P_i x_i + Q_i out_i
    x_{i+1} = A_i x_i + B_i m_i + C_i m_{i-1} + D_i m_{i-2} + S_i exp(R_i v_i) noise_i

`v_i` is the variance value of a head that predicts its own variance. One row is one head evaluation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from disa_framework.solvers.process import Nodes

_OTHER = 0.5

Step = Callable[[Tensor, int], Tensor]
"""`(x [B, n, D], row) -> out`, `[B, n, D]` or `[B, n, 2 D]` with the variance value behind, in any precision."""

State = Sequence[Tensor]
"""`(x_i, m_{i-1}, m_{i-2})`, as many of them as any row of the table reads, `[B, n, D]` each."""

Denoiser = Callable[[Nodes], Step]
"""Prepares a stage for the times of a table, and returns the function that evaluates the head."""

Normal = Callable[[int, torch.dtype], Tensor]
"""`(draws, dtype) -> [draws, B, n, D]` standard normals."""


@dataclass(frozen=True)
class Row:
    """Coefficients of one head evaluation; see the module's text."""

    P: float
    Q: float
    A: float
    B: float
    C: float = 0.0
    D: float = 0.0
    S: float = 0.0
    R: float = 0.0

    def __post_init__(self) -> None:
        broken = [f.name for f, factor in zip(fields(self), self.factors, strict=True) if not math.isfinite(factor)]
        if broken:
            raise ValueError(f"coefficients {', '.join(broken)} are not finite in {self}")

    @cached_property
    def factors(self) -> tuple[float, ...]:
        """`(P, Q, A, B, C, D, S, R)`."""
        return tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def pattern(self) -> tuple[float, ...]:
        """The factors, with one number for all that are neither 0 nor 1."""
        return tuple(factor if factor in (0, 1) else _OTHER for factor in self.factors)


@dataclass(frozen=True)
class Update:
    """What a row makes of the head's output; rows whose updates are equal differ in the values of factors alone.

    Attributes:
        pattern: of a row, which says where factors are 0 or 1.
        learns_variance: whether a variance value is behind the output.
    """

    pattern: tuple[float, ...]
    learns_variance: bool

    def __call__(
        self, out: Tensor, state: State, noise: Tensor | None, factors: Sequence[float | Tensor]
    ) -> tuple[Tensor, ...]:
        """The next state; `factors` are a row's, as numbers or as scalars of the device."""
        out, value = out.chunk(2, dim=-1) if self.learns_variance else (out, None)
        x, *past = state
        m = _sum(self.pattern[:2], factors[:2], (x, out))
        x = _sum(self.pattern[2:6], factors[2:6], (x, m, *past))
        if noise is not None:
            S, R = factors[6:]
            spread = noise if value is None or not self.pattern[7] else noise * torch.exp(value * R)
            x = _plus(x, S, spread)
        return (x, m, *past)[: len(state)]


class FusedStep(ABC):
    """A step that can do a whole row at once: evaluate the head, and update the state."""

    @property
    @abstractmethod
    def fuses(self) -> bool:
        """Whether it is to."""

    @abstractmethod
    def __call__(self, x: Tensor, i: int) -> Tensor:
        """As any step."""

    @abstractmethod
    def advance(
        self, i: int, update: Update, state: Tensor, noise: Tensor | None, factors: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """The state after row `i`, as one tensor; the head is given `x` in `dtype`."""


@dataclass(frozen=True)
class Table:
    """All rows of a solver for one number of steps, computed in float64.

    Attributes:
        nodes: where each row evaluates the head.
        rows: one a head evaluation.
        learns_variance: whether the head's output carries a variance value.
    """

    nodes: Nodes
    rows: tuple[Row, ...]
    learns_variance: bool = False

    def __post_init__(self) -> None:
        if len(self.nodes) != len(self.rows) or not self.rows:
            raise ValueError(f"a table needs one node a row, got {len(self.nodes)} and {len(self.rows)}")
        if early := [i for i, row in enumerate(self.rows[:2]) if row.D or (row.C and not i)]:
            raise ValueError(f"row {early[0]} reads an m from before the first row: {self.rows[early[0]]}")

    def __len__(self) -> int:
        """Number of head evaluations."""
        return len(self.rows)

    @cached_property
    def memory(self) -> int:
        """How many earlier `m` any row reads."""
        return max(2 if row.D else 1 if row.C else 0 for row in self.rows)

    @cached_property
    def updates(self) -> tuple[Update, ...]:
        """Of the rows. There are few different ones, however many rows a table has."""
        return tuple(Update(row.pattern, self.learns_variance) for row in self.rows)

    @cached_property
    def draws(self) -> int:
        """How many normals a token needs: the initial noise, and one a row up to the last noisy one."""
        return 1 + max((i + 1 for i, row in enumerate(self.rows) if row.S), default=0)

    def run(self, denoise: Denoiser, normal: Normal, head_dtype: torch.dtype) -> Tensor:
        """Turns noise into tokens.

        Args:
            denoise: the stage's head.
            normal: where noise comes from.
            head_dtype: precision of what the head is given. Between rows the state is kept in it, in float32 at least:
                float64, as some published samplers have it, changes tokens by rounding alone (docs/performance.md).

        Returns:
            Tokens `[B, n, D]` in `head_dtype`.
        """
        step = denoise(self.nodes)
        noise = normal(self.draws, state_precision(head_dtype))
        if isinstance(step, FusedStep) and step.fuses:
            return self._advanced(step, noise, head_dtype).to(head_dtype)
        return self._stepped(step, noise, head_dtype).to(head_dtype)

    def _stepped(self, step: Step, noise: Tensor, head_dtype: torch.dtype) -> Tensor:
        """Row by row, the head and then its update."""
        state: State = [noise[0]] * (1 + self.memory)  # first rows read no past
        for i, (row, update) in enumerate(zip(self.rows, self.updates, strict=True)):
            out = step(state[0].to(head_dtype), i).to(noise.dtype)
            state = update(out, state, noise[i + 1] if row.S else None, row.factors)
        return state[0]

    def _advanced(self, step: FusedStep, noise: Tensor, head_dtype: torch.dtype) -> Tensor:
        """Row by row, each at once."""
        state = noise[:1].repeat(1 + self.memory, 1, 1, 1)
        factors = self._factors(noise)
        for i, (row, update) in enumerate(zip(self.rows, self.updates, strict=True)):
            state = step.advance(i, update, state, noise[i + 1] if row.S else None, factors[i], head_dtype)
        return state[0]

    def _factors(self, like: Tensor) -> Tensor:
        """`[rows, 8]` on the device and in the precision of a tensor; they are brought there once."""
        key = like.device, like.dtype
        if key not in self._brought:
            with torch.inference_mode(False):  # as of the times
                factors = [row.factors for row in self.rows]
                self._brought[key] = torch.tensor(factors, dtype=like.dtype, device=like.device)
        return self._brought[key]

    @cached_property
    def _brought(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}


def state_precision(head_dtype: torch.dtype) -> torch.dtype:
    """Of the state between rows, and of guidance: that of the head, and float32 at least."""
    return torch.promote_types(head_dtype, torch.float32)


def _sum(known: Sequence[float], factors: Sequence[float | Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of `factor * tensor`; factors are 0 or 1 where what is known of them is. Those of no tensor are 0."""
    total: Tensor | None = None
    for of, factor, tensor in zip(known, factors, tensors, strict=False):
        if of == 0:
            continue
        if total is not None:
            total = _plus(total, factor, tensor)
        elif of == 1:
            total = tensor
        else:
            total = factor * tensor
    assert total is not None, "a row must depend on something"
    return total


def _plus(total: Tensor, factor: float | Tensor, tensor: Tensor) -> Tensor:
    """`total + factor * tensor`, in one pass."""
    if isinstance(factor, Tensor):
        return torch.addcmul(total, tensor, factor)
    return torch.add(total, tensor, alpha=factor)
