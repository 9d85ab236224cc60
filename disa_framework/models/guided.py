"""The head of a stage at the rows of a table, guided where guidance acts: both branches in one batch, and the
unconditional one nowhere else. With CUDA graphs a whole row is one: evaluation, guidance, and the solver's update.

Letters: `B` batch, `G` guidance branches (1 or 2), `n` tokens of a stage, `D` token channels, `m` tensors of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disa_framework.guidance import combine
from disa_framework.models.graphs import Evaluator
from disa_framework.solvers.table import FusedStep, Update, state_precision

Head = Callable[..., Tensor]
"""`(x [B or 2 B, n, D], *inputs, **constants) -> out`, `[…, D]`, or `[…, 2 D]` with the variance value behind. Rows of
the conditional branch come first, and are alone where guidance does not act."""


class GuidedStep(FusedStep):
    """Evaluates a head that knows nothing of guidance.

    Args:
        head: a module or a method of one, which cuts its constants to the rows of `x`.
        evaluate: calls it, and has what is constant.
        inputs: of the head, for each row of the table: tensors, and numbers that rows share.
        acts: whether guidance acts, for each row.
        scale: of guidance.
    """

    def __init__(
        self, head: Head, evaluate: Evaluator, inputs: Iterable[tuple[Any, ...]], acts: Sequence[bool], scale: float
    ) -> None:
        self._head, self._guided, self._evaluate = head, _Guided(head), evaluate
        self._inputs, self._acts, self._scale = list(inputs), acts, scale
        self._scale_on: Tensor | None = None

    @property
    def fuses(self) -> bool:
        return self._evaluate.records

    def __call__(self, x: Tensor, i: int) -> Tensor:
        head, inputs = self._row(i, x)
        return self._evaluate(head, x, *inputs)

    def advance(
        self, i: int, update: Update, state: Tensor, noise: Tensor | None, factors: Tensor, dtype: torch.dtype
    ) -> Tensor:
        head, inputs = self._row(i, state)
        return self._evaluate(_Row(head, update, dtype), state, noise, factors, *inputs)

    def _row(self, i: int, x: Tensor) -> tuple[Head, tuple[Any, ...]]:
        """What a row evaluates, and with which inputs besides `x`."""
        if not self._acts[i]:
            return self._head, self._inputs[i]
        return self._guided, (self._scale_of(x), *self._inputs[i])

    def _scale_of(self, x: Tensor) -> float | Tensor:
        """The scale, where `x` is if it is recorded: numbers are part of a recording."""
        if not self._evaluate.records:
            return self._scale
        if self._scale_on is None:
            self._scale_on = torch.full((), self._scale, dtype=state_precision(x.dtype), device=x.device)
        return self._scale_on


@dataclass(frozen=True)
class _Guided:
    """A head on both branches. The output is guided; a variance value stays the conditional branch's."""

    head: Head

    def __call__(self, x: Tensor, scale: Any, *inputs: Any, **constants: Any) -> Tensor:
        # In bfloat16 the scale itself would be rounded.
        cond, null = self.head(torch.cat((x, x)), *inputs, **constants).to(state_precision(x.dtype)).chunk(2)
        D = x.shape[-1]
        if cond.shape[-1] == D:
            return combine(cond, null, scale)
        return torch.cat((combine(cond[..., :D], null[..., :D], scale), cond[..., D:]), dim=-1)


@dataclass(frozen=True)
class _Row:
    """A row of a table, the head's evaluation included; `[m, B, n, D]` becomes the next state."""

    head: Head
    update: Update
    dtype: torch.dtype

    def __call__(
        self, state: Tensor, noise: Tensor | None, factors: Tensor, *inputs: Any, **constants: Any
    ) -> Tensor:
        out = self.head(state[0].to(self.dtype), *inputs, **constants).to(state.dtype)
        return torch.stack(self.update(out, state.unbind(), noise, factors.unbind()))
