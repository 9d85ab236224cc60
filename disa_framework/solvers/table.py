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
"""`(x [B, n, D], row) -> out`, `[B, n, D]` or `[B, n, 2 D]` with the variance value behind."""

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
        broken = [f.name for f in fields(self) if not math.isfinite(getattr(self, f.name))]
        if broken:
            raise ValueError(f"coefficients {', '.join(broken)} are not finite in {self}")


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

    def __len__(self) -> int:
        """Number of head evaluations."""
        return len(self.rows)

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
        precision = torch.promote_types(head_dtype, torch.float32)
        noise = normal(self.draws, precision)
        x, m1, m2 = noise[0], None, None
        for i, row in enumerate(self.rows):
            out = step(x.to(head_dtype), i).to(precision)
            out, value = out.chunk(2, dim=-1) if self.learns_variance else (out, None)
            m = _sum((row.P, x), (row.Q, out))
            x = _sum((row.A, x), (row.B, m), (row.C, m1), (row.D, m2))
            if row.S and value is not None and row.R:
                x = torch.addcmul(x, torch.exp(row.R * value), noise[i + 1], value=row.S)
            elif row.S:
                x = torch.add(x, noise[i + 1], alpha=row.S)
            m1, m2 = m, m1
        return x.to(head_dtype)


def _sum(*terms: tuple[float, Tensor | None]) -> Tensor:
    """The sum of `factor * tensor`, leaving out factors of 0."""
    total: Tensor | None = None
    for factor, tensor in terms:
        if factor == 0 or tensor is None:
            continue
        if total is None:
            total = tensor if factor == 1 else factor * tensor
        else:
            total = torch.add(total, tensor, alpha=factor)
    assert total is not None, "a row must depend on something"
    return total
