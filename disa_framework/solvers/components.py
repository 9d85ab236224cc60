"""Heads that know the density of a token, a mixture of Gaussians: drawn from in one evaluation, with some of the
components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from disa_framework.solvers.base import Solver
from disa_framework.solvers.grid import check_steps
from disa_framework.solvers.process import Factor, Nodes, Process
from disa_framework.solvers.table import Row, Table
from disa_framework.values import check_numbers


@dataclass(frozen=True)
class Density(Process):
    """Nothing is corrupted: the head gives the density of a token, a mixture of Gaussians with diagonal covariances.

    It is evaluated once, where a token is noise alone. The noise chooses one of the components, of which the head
    gives the mean, and the logarithms of the standard deviations as variance values. In the place of a time it is told
    how many components to use.

    Args:
        components: how many there are.
    """

    components: int
    learns_variance = True
    solvers: ClassVar[str] = "Components"
    grids: ClassVar[str] = "the solver Components, which has no grid"

    def __post_init__(self) -> None:
        check_numbers(Density.__init__, vars(self))

    def nodes(self, times: Sequence[float]) -> Nodes:
        if any(time not in range(1, self.components + 1) for time in times):
            raise self._timeless()
        count = len(times)
        return Nodes(tuple(map(float, times)), (0.0,) * count, (1.0,) * count)

    def unit_time(self, time: float) -> float:
        return 1.0

    def at_unit_time(self, unit: float) -> float:
        raise self._timeless()

    def time_at(self, log_snr: float) -> float:
        raise self._timeless()

    def to_noise(self, alpha: float, sigma: float) -> tuple[float, float]:
        return 1.0, 0.0

    def to_clean(self, alpha: float, sigma: float) -> tuple[float, float]:
        return 0.0, 1.0

    def target(self, clean: Tensor, noise: Tensor, alpha: Factor | None = None, sigma: Factor | None = None) -> Tensor:
        return clean

    def _timeless(self) -> ValueError:
        return ValueError(f"a head that knows the density of a token has no times: use {self.solvers}")


@dataclass(frozen=True)
class Components(Solver):
    """Draws a token of a mixture of Gaussians (GIVT, arXiv 2312.02116) in one evaluation of the head.

    What a schedule calls steps is the number of components that are used: those of largest weight, whose weights are
    made to add up to 1 again. More than there are is all of them.

    Args:
        temperature: factor on the standard deviations; GIVT's is 0.95.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(Components.__init__, vars(self))

    def build(self, process: Process, steps: int) -> Table:
        if not isinstance(process, Density):
            raise ValueError(
                f"Components is for heads that know the density of a token, this one is {type(process).__name__}: "
                f"use {process.solvers}"
            )
        check_steps(steps)
        nodes = process.nodes([min(steps, process.components)])
        return Table(nodes, (Row(P=0, Q=1, A=0, B=1, S=self.temperature, R=1),), learns_variance=True)
