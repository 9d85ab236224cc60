"""The paper's ablations (DiSA, arXiv 2505.20297): one thing is varied, and what is drawn is measured.

All variations are drawn with the same noise. Each ablation is a function of a module, of the number of steps that is
many, and of a menu of numbers that are few.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from disa_framework.diagnostics.report import write
from disa_framework.diagnostics.runs import MENU
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Progress, silent
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.search.finalists import Measured
from disa_framework.search.meter import Meter
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    RectifiedFlow,
    Solver,
    Spaced,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Variations = dict[str, SamplingConfig]
"""By name."""


def _scheduled(module: ARDiffusionModule, schedules: Mapping[str, StepSchedule]) -> Variations:
    """The module's sampling config with each of the schedules."""
    return {name: replace(module.sampling, schedule=schedule) for name, schedule in schedules.items()}


def early_late(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Variations:
    """`T_early` against `T_late`: few steps in the first or in the second half of the stages."""
    schedules: dict[str, StepSchedule] = {f"{steps} early, {steps} late": Constant(steps)}
    for few in menu:
        schedules[f"{few} early, {steps} late"] = TwoStage(few, steps)
        schedules[f"{steps} early, {few} late"] = TwoStage(steps, few)
    return _scheduled(module, schedules)


def equal_mean(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Variations:
    """Schedules between `steps` and the fewest of the menu, whose mean is the same."""
    few = min(menu)
    rising = Linear(steps, few).budget(module.sampling.stages)[::-1]
    return _scheduled(module, {
        "constant": Constant(round((steps + few) / 2)), "two stages": TwoStage(steps, few),
        "linear": Linear(steps, few), "cosine": Cosine(steps, few), "linear, reversed": PerStage(rising),
    })  # fmt: skip


def clip(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Variations:
    """The largest timestep at 950 or not, with the same steps at all stages."""
    solver = cast(Any, module.sampling.solver)
    if not isinstance(getattr(solver, "grid", None), Spaced):
        raise ValueError(f"the ablation clip needs a solver on the grid Spaced, as DDPM and DDIM are, got {solver}")
    return {
        f"{count} steps, {'no clip' if top is None else f'clip {top}'}": replace(
            module.sampling, schedule=Constant(count), solver=replace(solver, grid=Spaced(top))
        )
        for count in (*menu, steps)
        for top in (950, None)
    }


def solvers(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Variations:
    """Solvers with equal head evaluations at all stages; where a grid does not allow for them, with fewer."""
    process = module.model.process
    flow = isinstance(process, RectifiedFlow)
    kinds: list[Solver] = [Euler(), Heun(), EulerMaruyama()] if flow else [DDPM(), DDIM(), DPMSolver(), DPMSolverPP()]

    def variations() -> Iterator[tuple[str, SamplingConfig]]:
        for count in (*menu, steps):
            for solver in kinds:
                most = max(t for t in range(1, 2 * count + 1) if solver.evaluations(process, t) <= count)
                name = f"{solver.evaluations(process, most)} evaluations, {type(solver).__name__}"
                yield name, replace(module.sampling, schedule=Constant(most), solver=solver)

    return dict(variations())


def stages(module: ARDiffusionModule, steps: int, menu: Sequence[int]) -> Variations:
    """All stages, half of them, a quarter and so on, at constant and at falling steps."""
    most, least = module.sampling.stages, max(module.model.min_stages, 2)
    counts = [most >> i for i in range(most.bit_length()) if most >> i >= least]
    if len(counts) < 2:
        raise ValueError(f"this model cannot draw in fewer stages than {most}, which the ablation compares")
    return {
        f"{count} stages, {name}": replace(module.sampling, schedule=schedule, num_stages=count)
        for count in counts
        for name, schedule in (("constant", Constant(steps)), ("linear", Linear(steps, min(menu))))
    }


ABLATIONS: dict[str, Callable[[ARDiffusionModule, int, Sequence[int]], Variations]] = {
    "early_late": early_late,
    "equal_mean": equal_mean,
    "clip": clip,
    "solvers": solvers,
    "stages": stages,
}


@dataclass(frozen=True)
class Variation(Measured):
    """A variation of a sampling config, and what it draws.

    Attributes:
        evaluations: of the head, for a sample.
    """

    evaluations: int


@dataclass(frozen=True)
class Ablation:
    """What was varied and measured.

    Attributes:
        name: of `ABLATIONS`.
        variations: in its order.
    """

    name: str
    variations: tuple[Variation, ...]

    def asymmetry(self) -> dict[int, list[float]]:
        """How many times as far off early cuts are as late ones: for each number of steps, by seeds; of `early_late`,
        and of others nothing."""
        if self.name != "early_late":
            return {}
        cuts = zip(self.variations[1::2], self.variations[2::2], strict=True)
        return {
            early.sampling.budget[0]: [a / b for a, b in zip(early.distances, late.distances, strict=True)]
            for early, late in cuts
        }

    @property
    def notes(self) -> list[str]:
        """What the table does not say."""
        return [
            f"cut to {few} steps, early is {statistics.mean(ratios):.2f} times as far off as late "
            f"({min(ratios):.2f} … {max(ratios):.2f})"
            for few, ratios in self.asymmetry().items()
        ]

    def table(self) -> list[list[str]]:
        """The variations as text, below the headings."""
        lines = [["variation", "first → last", "evaluations", "distance"]]
        return lines + [[each.name, each.ends, str(each.evaluations), each.distance] for each in self.variations]

    def plot(self, axes: Axes) -> None:
        """Draws distances with their spread."""
        shown = self.variations[::-1]
        means, spreads = [each.mean for each in shown], [each.spread for each in shown]
        axes.barh([each.name for each in shown], means, xerr=spreads, color="tab:gray")
        axes.set(xlabel="distance")

    def save(self, folder: Path) -> Path:
        """Writes a CSV named as the ablation, with one row a variation, a page and a picture; returns the page."""
        seeds = range(len(self.variations[0].distances))
        rows: list[list[object]] = [["variation", "budget", "evaluations", *(f"distance_{i}" for i in seeds)]]
        for each in self.variations:
            rows.append([each.name, " ".join(map(str, each.sampling.budget)), each.evaluations, *each.distances])
        path, height = folder / f"{self.name}.csv", 1 + 0.3 * len(self.variations)
        write(path, f"Ablation: {self.name}", rows, self.table(), self.notes, {self.name: self.plot}, height)
        return path.with_suffix(".html")


def ablate(
    meter: Meter,
    name: str,
    count: int,
    steps: int = 50,
    menu: Sequence[int] = MENU,
    seeds: int = 3,
    progress: Progress = silent,
) -> Ablation:
    """Draws and measures all variations of an ablation.

    Args:
        meter: draws and measures.
        name: of `ABLATIONS`.
        count: samples of each variation and seed.
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
    asked, measured = ABLATIONS[name](module, steps, menu), list[Variation]()
    for label, sampling in asked.items():
        distances = list[float]()
        for seed in range(module.seed, module.seed + seeds):
            distances.append(meter.measure(sampling, count, seed))
            progress(len(measured) * seeds + len(distances), len(asked) * seeds)
        measured.append(Variation(label, sampling, tuple(distances), sampling.evaluations(module.model.process)))
    return Ablation(name, tuple(measured))
