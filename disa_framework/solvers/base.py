"""What a solver is: a frozen set of options that makes a table for a process and a number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Denoiser, Normal, Table


class Solver(ABC):
    """Subclass as a frozen dataclass and implement `build`; equal options share their tables."""

    @abstractmethod
    def build(self, process: Process, steps: int) -> Table:
        """The table for `steps` diffusion steps.

        Raises:
            ValueError: if solver, grid and process do not fit together, or `steps` is below 1.
        """

    def at(self, stage: int) -> Solver:
        """The solver of an AR stage: this one, unless stages have solvers of their own."""
        return self

    def taken(self, steps: int) -> int:
        """How many steps are taken where so many are allowed: all, unless it has been made for a few numbers alone."""
        return steps

    @property
    def num_stages(self) -> int | None:
        """The number of AR stages that it is for; any number where it is None."""
        return None

    def table(self, process: Process, steps: int) -> Table:
        """As `build`, computed once, and checked to fit the process."""
        return _build(self, process, steps)

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        steps: int,
        normal: Normal,
        head_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draws tokens `[B, n, D]` in `steps` diffusion steps."""
        return self.table(process, steps).run(denoise, normal, head_dtype)

    def evaluations(self, process: Process, steps: int) -> int:
        """How often the head is evaluated in `steps` steps; a grid may let some of them coincide."""
        return len(self.table(process, steps))


@lru_cache(maxsize=4096)
def _build(solver: Solver, process: Process, steps: int) -> Table:
    table = solver.build(process, steps)
    if not process.runs(table):
        raise ValueError(f"{type(solver).__name__} is not for heads of {type(process).__name__}: use {process.solvers}")
    return table
