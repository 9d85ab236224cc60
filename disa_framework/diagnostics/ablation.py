"""The paper's ablations (DiSA, arXiv 2505.20297): one thing is varied, and what is drawn is measured.

All settings of an ablation are drawn with the same noise. Each ablation is a function of a module, of the number of
steps that is many, and of a menu of numbers that are few.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from disa_framework.diagnostics.runs import MENU, Progress
from disa_framework.files import write_atomically
from disa_framework.models.lazy import REFRESHES, Lazy, check_cache
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.search.cost import analytic_cost
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs
from disa_framework.search.report import Measured
from disa_framework.search.space import Setting
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    LinearFlow,
    Solver,
    Spaced,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Settings = dict[str, Setting]


def _scheduled(module: ARDiffusionModule, schedules: Mapping[str, StepSchedule]) -> Settings:
    """The module as it is, with each of the schedules."""
    return {name: replace(Setting.of(module), schedule=schedule) for name, schedule in schedules.items()}


def early_late(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """`T_early` against `T_late`: few steps in the first or in the second half of the stages."""
    schedules: dict[str, StepSchedule] = {f"{steps} early, {steps} late": Constant(steps)}
    for few in menu:
        schedules[f"{few} early, {steps} late"] = TwoStage(few, steps)
        schedules[f"{steps} early, {few} late"] = TwoStage(steps, few)
    return _scheduled(module, schedules)


def equal_mean(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """Schedules between `steps` and the fewest of the menu, whose mean is the same."""
    few = min(menu)
    rising = Linear(steps, few).budget(module.num_stages)[::-1]
    return _scheduled(module, {
        "constant": Constant(round((steps + few) / 2)), "two stages": TwoStage(steps, few),
        "linear": Linear(steps, few), "cosine": Cosine(steps, few), "linear, reversed": PerStage(rising),
    })  # fmt: skip


def clip(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """The largest timestep at 950 or not, with the same steps at all stages."""
    base, solver = Setting.of(module), cast(Any, module.solver)
    if not isinstance(getattr(solver, "grid", None), Spaced):
        raise ValueError(f"the ablation clip needs a solver on the grid Spaced, as DDPM and DDIM are, got {solver}")
    return {
        f"{count} steps, {'no clip' if top is None else f'clip {top}'}": replace(
            base, schedule=Constant(count), solver=replace(solver, grid=Spaced(top))
        )
        for count in (*menu, steps)
        for top in (950, None)
    }


def solvers(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """Solvers with equal head evaluations at all stages; where a grid does not allow for them, with fewer."""
    base, process = Setting.of(module), module.model.process
    flow = isinstance(process, LinearFlow)
    kinds: list[Solver] = [Euler(), Heun(), EulerMaruyama()] if flow else [DDPM(), DDIM(), DPMSolver(), DPMSolverPP()]

    def settings() -> Iterator[tuple[str, Setting]]:
        for count in (*menu, steps):
            for solver in kinds:
                most = max(t for t in range(1, 2 * count + 1) if solver.evaluations(process, t) <= count)
                name = f"{solver.evaluations(process, most)} evaluations, {type(solver).__name__}"
                yield name, replace(base, schedule=Constant(most), solver=solver)

    return dict(settings())


def stages(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """All stages, half of them, a quarter and so on, at constant and at falling steps."""
    base, least = Setting.of(module), max(module.model.min_stages, 2)
    counts = [base.num_stages >> i for i in range(base.num_stages.bit_length()) if base.num_stages >> i >= least]
    if len(counts) < 2:
        raise ValueError(f"this model cannot draw in fewer stages than {base.num_stages}, which the ablation compares")
    return {
        f"{count} stages, {name}": replace(base, schedule=schedule, num_stages=count)
        for count in counts
        for name, schedule in (("constant", Constant(steps)), ("linear", Linear(steps, min(menu))))
    }


def caching(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Settings:
    """Feature caching at several periods, at constant and at falling steps."""
    base, schedules = Setting.of(module), {"constant": Constant(steps), "linear": Linear(steps, min(menu))}
    check_cache(module.model, Lazy())
    return {
        f"{'no cache' if cache is None else f'refresh {cache.refresh}'}, {name}": replace(
            base, schedule=schedule, cache=cache
        )
        for cache in (None, *map(Lazy, REFRESHES))
        for name, schedule in schedules.items()
    }


ABLATIONS: dict[str, Callable[[ARDiffusionModule, int, Sequence[int]], Settings]] = {
    "early_late": early_late,
    "equal_mean": equal_mean,
    "clip": clip,
    "solvers": solvers,
    "stages": stages,
    "caching": caching,
}


@dataclass(frozen=True)
class Case(Measured):
    """A setting of an ablation.

    Attributes:
        evaluations: of the head, for an image.
    """

    evaluations: int


def measure_ablation(
    meter: Meter, name: str, *, count: int, steps: int = 50, menu: Sequence[int] = MENU, seeds: int = 3,
    progress: Progress | None = None,
) -> list[Case]:  # fmt: skip
    """Draws and measures all settings of an ablation.

    Args:
        meter: draws and measures, within its `lead`.
        name: of `ABLATIONS`.
        count: samples of each setting and seed.
        steps: that are many.
        menu: numbers of steps that are few.
        seeds: how many seeds of the noise, the module's and those that follow it.
        progress: is told after every measurement.

    Raises:
        ValueError: if the ablation is unknown or does not fit the module.
    """
    module = meter.module
    if name not in ABLATIONS:
        raise ValueError(f"no ablation {name!r}: there are {', '.join(ABLATIONS)}")
    if not menu or not 1 <= min(menu) <= max(menu) < steps:
        raise ValueError(f"the menu must have step counts from 1 to below {steps}, got {list(menu)}")
    settings, costs = ABLATIONS[name](module, steps, menu), Costs(module, analytic_cost)
    cases: list[Case] = []
    for label, setting in settings.items():
        distances = []
        for seed in range(module.seed, module.seed + seeds):
            distances.append(meter.measure(setting, count, seed))
            if progress:
                progress(len(cases) * seeds + len(distances), len(settings) * seeds)
        cases.append(Case(label, setting, tuple(distances), round(costs(setting))))
    return cases


def asymmetry(cases: Sequence[Case]) -> dict[int, list[float]]:
    """How many times as far off early cuts are as late ones: of `early_late`, for each number of steps, by seeds."""
    return {
        early.setting.budget[0]: [a / b for a, b in zip(early.distances, late.distances, strict=True)]
        for early, late in zip(cases[1::2], cases[2::2], strict=True)
    }


def table(cases: Sequence[Case]) -> list[list[str]]:
    """The cases as text, below the headings."""
    lines = [["setting", "first → last", "evaluations", "distance"]]
    return lines + [[case.name, case.ends, str(case.evaluations), case.distance] for case in cases]


def save(path: Path, cases: Sequence[Case]) -> None:
    """Writes a CSV with one row a case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "budget", "evaluations", *(f"distance_{i}" for i in range(len(cases[0].distances)))])
    for case in cases:
        writer.writerow([case.name, " ".join(map(str, case.setting.budget)), case.evaluations, *case.distances])
    write_atomically(path, text.getvalue().encode())


def plot(cases: Sequence[Case], axes: Axes) -> None:
    """Draws distances with their spread."""
    names = [case.name for case in cases][::-1]
    axes.barh(names, [case.mean for case in cases][::-1], xerr=[case.spread for case in cases][::-1], color="tab:gray")
    axes.set(xlabel="distance")
