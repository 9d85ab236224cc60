"""Noise that runs of different step counts share, so that their difference shows the steps and not the luck.

A stochastic solver sees one Brownian path at its own times. Of the path of a run with many steps, a run with few takes
the increments between its times: sums of normals, weighted by how much the signal-to-noise ratio grows during each,
which is how much of each is left in the token at the end. A weighted sum of normals is again a normal, so each run by
itself draws what it would draw anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers import Process, Solver


class SharedPath:
    """The path of a run with `fine_steps` steps, at every stage.

    Args:
        source: of the fine run's noise.
        solver, process: of all runs that are compared.
        fine_steps: at least twice as many as any of the others has.
    """

    def __init__(self, source: NoiseSource, solver: Solver, process: Process, fine_steps: int) -> None:
        self.source, self.solver, self.process = source, solver, process
        self.table = solver.table(process, fine_steps)
        # Many runs of one stage share them.
        self.fine = lru_cache(1)(lambda stage, shape, dtype: source.normal(stage, shape, self.table.draws, dtype))

    @cached_property
    def weights(self) -> Tensor:
        """How much the signal-to-noise ratio grows in each row, under a root."""
        nodes = self.table.nodes
        ratios = [(alpha / sigma) ** 2 for alpha, sigma in zip(nodes.alphas, nodes.sigmas, strict=True)]
        return torch.tensor([b - a for a, b in pairwise(ratios)], dtype=torch.float64).sqrt()

    def of(self, steps: int) -> NoiseSource:
        """Noise of a run with `steps` steps.

        Raises:
            ValueError: if the fine run is not fine enough.
        """
        if self.table.draws == 1 or len(self.table) == 1:  # of which there is no path between two rows
            return self.source
        fine = torch.tensor(self.table.nodes.times, dtype=torch.float64)
        times = self.solver.table(self.process, steps).nodes.times
        rows = [int((fine - time).abs().argmin()) for time in times]
        if any(b <= a for a, b in pairwise(rows)):
            raise ValueError(f"a run of {len(fine)} steps has no room for {steps}: give it at least {2 * steps}")
        return _Coarse(self, rows)


class _Coarse:
    """Noise of a run whose times are those of some rows of the fine one."""

    def __init__(self, path: SharedPath, rows: list[int]) -> None:
        self.path, self.rows = path, rows
        self.batch_size, self.permutation = path.source.batch_size, path.source.permutation

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """As the protocol says: the fine run's initial noise, then one increment of its path a row."""
        fine = self.path.fine(stage, tuple(shape), dtype)
        noise = [fine[0]]
        for a, b in list(pairwise(self.rows))[: draws - 1]:
            weights = self.path.weights[a:b].to(fine)
            noise.append(torch.tensordot(weights / weights.norm(), fine[1 + a : 1 + b], dims=1))
        return torch.stack(noise)
