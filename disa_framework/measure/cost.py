"""What a budget costs: `fixed + sum_k (backbone_k + evaluations(T(k)) head_k)`, counted, or fitted to timed runs.

Letters: `K` stages, `M` entries of a menu of step counts, `R` repeats, `b` timed budgets.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from disa_framework.files import write_atomically
from disa_framework.measure.latency import StageTimer, in_turn, measure_latency, median
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.devices import name_of
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import PerStage
from disa_framework.schedules.base import Budget, check_budget
from disa_framework.solvers import Process, Solver

Unit = Literal["seconds", "evaluations"]

_SAVED = ("unit", "batch_size", "device", "fixed", "backbone", "head")
_TIMED_STEPS = (5, 20, 50)


@dataclass(frozen=True)
class CostModel:
    """What a sample costs at a budget, linear in the head evaluations of each stage.

    Attributes:
        fixed: before the first and after the last stage, the tokenizer's decoder included.
        backbone: `[K]`, of each stage whatever its steps.
        head: `[K]`, of one head evaluation at each stage.
        process, solver: decide how many evaluations `T(k)` steps take. The costs of another solver follow by
            `dataclasses.replace`, as an evaluation is the same for all.
        unit: of all costs; seconds are those of a batch, divided by its size.
        batch_size: for which seconds hold.
        device: kind of the device on which seconds hold.
    """

    fixed: float
    backbone: tuple[float, ...]
    head: tuple[float, ...]
    process: Process
    solver: Solver
    unit: Unit = "seconds"
    batch_size: int = 1
    device: str = "any"

    def __post_init__(self) -> None:
        if not len(self.backbone) == len(self.head) >= 1:
            raise ValueError(
                f"a cost model needs a backbone and a head cost for each stage, "
                f"got {len(self.backbone)} and {len(self.head)}"
            )
        for cost in (self.fixed, *self.backbone, *self.head):
            if not 0 <= cost < math.inf:
                raise ValueError(f"costs must be finite and at least 0, got {cost}")
        if self.unit not in get_args(Unit):
            raise ValueError(f"the unit of costs must be one of {list(get_args(Unit))}, got {self.unit!r}")

    def __call__(self, budget: Sequence[int]) -> float:
        """Cost of a sample at a budget of `K` stages."""
        budget = check_budget(budget, len(self.head))
        return math.fsum([self.fixed, *(self._stage(k, steps) for k, steps in enumerate(budget))])

    def stage_costs(self, menu: Sequence[int]) -> list[list[float]]:
        """`[K][M]`, what each stage costs with each step count; with `fixed` on top they add up to the whole cost."""
        return [[self._stage(k, steps) for steps in menu] for k in range(len(self.head))]

    def _stage(self, stage: int, steps: int) -> float:
        return self.backbone[stage] + self.solver.at(stage).evaluations(self.process, steps) * self.head[stage]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the numbers as JSON; process and solver are those that `load` is given."""
        numbers = {name: getattr(self, name) for name in _SAVED}
        write_atomically(Path(path), (json.dumps(numbers, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], process: Process, solver: Solver) -> CostModel:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds no cost model.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            numbers = {name: content[name] for name in _SAVED}
            backbone, head = (tuple(map(float, numbers.pop(name))) for name in ("backbone", "head"))
            return cls(backbone=backbone, head=head, process=process, solver=solver, **numbers)
        except (KeyError, TypeError, ValueError) as error:  # of JSON, too
            raise ValueError(f"{path} holds no cost model, measure one anew: {error!r}") from error


def analytic_cost(module: ARDiffusionModule) -> CostModel:
    """Head evaluations of a sample, for machines whose times are too noisy."""
    K = module.sampling.stages
    return CostModel(0.0, (0.0,) * K, (1.0,) * K, module.model.process, module.sampling.solver, unit="evaluations")


def measure_cost(
    module: ARDiffusionModule,
    condition: Condition | None,
    batch_size: int,
    *,
    budgets: Sequence[Sequence[int]] | None = None,
    repeats: int = 5,
) -> CostModel:
    """Fits a cost model to runs on the device the module is on.

    All budgets are drawn once to warm up and then in turn, so that a slow spell of the machine meets all alike.
    Medians over the repeats leave out what interrupts single stages; a common factor then makes the model right
    on whole runs, which are interrupted, too.

    Args:
        module: what draws, at the precision in which it is called.
        condition: of `B` samples; `None` draws unconditional ones.
        batch_size: `B`.
        budgets: at least two, which give each stage at least two different counts of evaluations; by default
            three, in each of which 5, 20 and 50 steps take turns.
        repeats: timed runs of each budget.

    Raises:
        ValueError: if budgets do not fit the stages or vary too little, or inputs do not fit the module.
    """
    sampling, process = module.sampling, module.model.process
    timed = [check_budget(budget, sampling.stages) for budget in budgets or _taking_turns(sampling.stages)]
    counts = _evaluations(timed, sampling.solver, process)
    laps = in_turn(StageTimer, module, condition, batch_size, _with_budgets(sampling, timed), repeats)
    fixed, backbone, head = (seconds / batch_size for seconds in _fit(laps, counts))
    return CostModel(
        fixed=fixed.item(),
        backbone=tuple(backbone.tolist()),
        head=tuple(head.tolist()),
        process=process,
        solver=sampling.solver,
        batch_size=batch_size,
        device=name_of(module.model.device),
    )


def held_out_error(
    model: CostModel,
    module: ARDiffusionModule,
    condition: Condition | None,
    budgets: Sequence[Sequence[int]],
    *,
    repeats: int = 5,
) -> float:
    """How far the model is off runs with budgets that it was not fitted on, as a share of their times: the median.

    Raises:
        ValueError: if the model does not give seconds.
    """
    if model.unit != "seconds":
        raise ValueError(f"the cost model counts {model.unit}, which no clock can check: fit one with measure_cost")
    samplings = _with_budgets(module.sampling, budgets)
    timed = measure_latency(module, condition, model.batch_size, samplings, repeats=repeats)
    return statistics.median(abs(model(budget) / t - 1) for budget, t in zip(budgets, timed, strict=True))


def _taking_turns(num_stages: int) -> list[Budget]:
    """Each stage has each count once, and all budgets take about as long."""
    n = len(_TIMED_STEPS)
    return [tuple(_TIMED_STEPS[(k + shift) % n] for k in range(num_stages)) for shift in range(n)]


def _evaluations(budgets: Sequence[Budget], solver: Solver, process: Process) -> Tensor:
    """Counts `[b, K]`, which tell what an evaluation costs at each stage."""
    rows = [[solver.at(k).evaluations(process, steps) for k, steps in enumerate(budget)] for budget in budgets]
    counts = torch.tensor(rows)
    if alike := (counts == counts[0]).all(dim=0).nonzero().flatten().tolist():
        raise ValueError(
            f"the budgets must vary the head evaluations of every stage; all give stage {alike[0]} "
            f"{counts[0, alike[0]]}"
        )
    return counts.double()


def _with_budgets(sampling: SamplingConfig, budgets: Sequence[Sequence[int]]) -> list[SamplingConfig]:
    return [replace(sampling, schedule=PerStage(check_budget(budget, sampling.stages))) for budget in budgets]


def _fit(laps: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Seconds of a batch: fixed, and of each stage those of the backbone and of an evaluation, `[K]` each.

    Args:
        laps: `[R, b, 2 K + 2]` seconds: before the stages, backbone and head of each, after them.
        counts: `[b, K]` head evaluations.
    """
    fixed = median((laps[..., 0] + laps[..., -1]).flatten())
    setup, head = _nonnegative_lines(counts, median(laps[..., 2:-1:2]))
    backbone = median(laps[..., 1:-1:2].flatten(0, 1)) + setup
    expected = fixed + (backbone + counts * head).sum(dim=1)
    scale = median(median(laps.sum(dim=-1)) / expected)
    return fixed * scale, backbone * scale, head * scale


def _nonnegative_lines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Intercepts and slopes `[K]`, none negative, that fit `y [b, K]` over `x [b, K]` best in least squares."""
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    slope = ((x - x_mean) * (y - y_mean)).sum(dim=0) / (x - x_mean).square().sum(dim=0)
    through_origin = (x * y).sum(dim=0) / x.square().sum(dim=0)
    slope = torch.where(y_mean < slope * x_mean, through_origin, slope).clamp(min=0)
    return (y_mean - slope * x_mean).clamp(min=0), slope
