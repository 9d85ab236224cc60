"""A solver is a table, and this is the loop that runs any of them.

Every sampler here is linear in the state, the network outputs and the noise. Row `i`:

    m_i     = P_i x_i + Q_i out_i
    x_{i+1} = A_i x_i + B_i m_i + C_i m_{i-1} + D_i m_{i-2} + S_i exp(R_i v_i) noise_i

`v_i` is the variance value of a head that predicts its own variance. One row is one head evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from disa_framework.solvers.process import Nodes

Step = Callable[[Tensor, int], Tensor]
"""`(x [B, n, D], row) -> out`, `[B, n, D]` or `[B, n, 2 D]` with the variance value behind, in any precision."""

Denoiser = Callable[[Nodes], Step]
"""Prepares a stage for the times of a table, and returns the function that evaluates the head."""

State = tuple[Tensor, ...]
"""`(x_i, m_{i-1}, m_{i-2})`, as many of them as any row of the table reads, `[B, n, D]` each."""

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
        broken = [f.name for f in fields(self) if not math.isfinite(getattr(self, f.name))]
        if broken:
            raise ValueError(f"coefficients {', '.join(broken)} are not finite in {self}")

    def __call__(self, out: Tensor, state: State, noise: Tensor | None, value: Tensor | None) -> State:
        """The state after this row.

        Args:
            out: of the head, `[B, n, D]`, without a variance value.
            state: before it.
            noise: of this row, where `S` is not 0.
            value: of the variance, where the head predicts it.
        """
        x, *past = state
        m = _sum((self.P, x), (self.Q, out))
        x = _sum((self.A, x), (self.B, m), *zip((self.C, self.D), past, strict=False))
        if noise is not None:
            spread = noise if value is None or not self.R else noise * torch.exp(value * self.R)
            x = torch.add(x, spread, alpha=self.S)
        return (x, m, *past)[: len(state)]


@dataclass(frozen=True)
class Table:
    """All rows of a solver for one number of steps, computed in float64.

    Attributes:
        nodes: where each row evaluates the head.
        rows: one a head evaluation.
        learns_variance: whether the head's output carries a variance value.
        start: factor on the noise that tokens begin as.
    """

    nodes: Nodes
    rows: tuple[Row, ...]
    learns_variance: bool = False
    start: float = 1.0

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
    def draws(self) -> int:
        """How many normals a token needs: the initial noise, and one a row up to the last noisy one."""
        return 1 + max((i + 1 for i, row in enumerate(self.rows) if row.S), default=0)

    def run(self, denoise: Denoiser, normal: Normal, head_dtype: torch.dtype) -> Tensor:
        """Turns noise into tokens.

        Args:
            denoise: the stage's head.
            normal: where noise comes from.
            head_dtype: precision of what the head is given. Between rows the state is kept in it, in float32 at least.

        Returns:
            Tokens `[B, n, D]` in `head_dtype`.
        """
        step = denoise(self.nodes)
        noise = normal(self.draws, state_precision(head_dtype))
        state = self.begin(noise[0])
        for i in range(len(self)):
            state = self.advance(state, step, i, noise, head_dtype)
        return state[0].to(head_dtype)

    def begin(self, noise: Tensor) -> State:
        """The state before the first row, of noise `[B, n, D]`."""
        x = noise if self.start == 1 else noise * self.start
        return (x,) * (1 + self.memory)  # first rows read no past

    def advance(self, state: State, step: Step, i: int, noise: Tensor, head_dtype: torch.dtype) -> State:
        """The state after row `i`; `noise [draws, B, n, D]` is that of the whole run."""
        row = self.rows[i]
        out = step(state[0].to(head_dtype), i).to(state[0].dtype)
        out, value = out.chunk(2, dim=-1) if self.learns_variance else (out, None)
        return row(out, state, noise[i + 1] if row.S else None, value)


def state_precision(head_dtype: torch.dtype) -> torch.dtype:
    """Of the state between rows, and of guidance: that of the head, and float32 at least."""
    return torch.promote_types(head_dtype, torch.float32)


def _sum(*terms: tuple[float, Tensor]) -> Tensor:
    """The sum of `factor * tensor`. What is multiplied with 0 is left out, what with 1 is taken as it is."""
    total: Tensor | None = None
    for factor, tensor in terms:
        if factor == 0:
            continue
        if total is None:
            total = tensor if factor == 1 else factor * tensor
        else:
            total = torch.add(total, tensor, alpha=factor)
    assert total is not None, "a row must depend on something"
    return total
