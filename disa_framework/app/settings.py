"""What the page lets people choose: parts of a sampling config, on top of a preset, and as options of a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.order import TokenOrder
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.solvers import Grid, Solver
from disa_framework.values import known

KEPT = "as in the preset"
CONFIGURED = "as configured"
"""The preset that is the module's own sampling config."""
RAMPS: dict[str, Callable[[int, int], StepSchedule]] = {"Linear": Linear, "Cosine": Cosine, "TwoStage": TwoStage}
SCHEDULES = ("Constant", *RAMPS)


@dataclass(frozen=True)
class Choices:
    """What there is to choose from for a model.

    Attributes:
        model: draws.
        presets: sampling configs by name, settled; the first is the one to begin with.
        solvers, grids, orders: by the names of their classes, with the options that they have by default.
    """

    model: ARDiffusionModel
    presets: Mapping[str, SamplingConfig]
    solvers: Mapping[str, Solver]
    grids: Mapping[str, Grid]
    orders: Mapping[str, TokenOrder]

    @classmethod
    def of(cls, model: ARDiffusionModel, presets: Mapping[str, SamplingConfig]) -> Choices:
        """All that the model can draw with.

        Raises:
            ValueError: it cannot draw with one of the presets.
        """
        settled = {name: model.settle(preset) for name, preset in presets.items()}
        base = replace(next(iter(settled.values())), schedule=Constant(20))

        def fits(**parts: Any) -> bool:
            try:
                return model.settle(replace(base, **parts)) is not None
            except ValueError:
                return False

        solvers = {name: solver for name, solver in _plain(Solver).items() if fits(solver=solver)}
        gridded = [solver for solver in solvers.values() if hasattr(solver, "grid")]
        grids = {
            name: grid
            for name, grid in _plain(Grid).items()
            if any(fits(solver=_on(solver, grid)) for solver in gridded)
        }
        orders = {name: order for name, order in _plain(TokenOrder).items() if fits(order=order)}
        return cls(model, settled, solvers, grids, orders)


@dataclass(frozen=True)
class Setting:
    """A way to draw, as it is chosen.

    Attributes:
        preset: name of the sampling config whose parts are kept where nothing else is chosen.
        schedule, solver, grid, order: names, or `KEPT`.
        early, late: steps of the first and of the last stage, where a schedule is chosen; a constant one has `early`.
        num_stages: of a sample.
        guidance: its scale.
    """

    preset: str
    schedule: str
    early: int
    late: int
    solver: str
    grid: str
    order: str
    num_stages: int
    guidance: float

    @classmethod
    def kept(cls, preset: str, choices: Choices) -> Setting:
        """A preset as it is."""
        sampling = choices.presets[preset]
        budget = sampling.budget
        return cls(preset, KEPT, budget[0], budget[-1], KEPT, KEPT, KEPT, sampling.stages, sampling.guidance.scale)

    def sampling(self, choices: Choices) -> SamplingConfig:
        """The sampling config, settled.

        Raises:
            ValueError: the model cannot draw like this; the message says why.
        """
        base = choices.presets[self.preset]
        parts: dict[str, Any] = {"num_stages": self.num_stages}
        parts["guidance"] = replace(base.guidance, scale=float(self.guidance))
        if self.schedule in RAMPS:
            parts["schedule"] = RAMPS[self.schedule](self.early, self.late)
        elif self.schedule != KEPT:
            parts["schedule"] = Constant(self.early)
        solver = base.solver if self.solver == KEPT else _like(base.solver, choices.solvers[self.solver])
        parts["solver"] = solver if self.grid == KEPT else _on(solver, choices.grids[self.grid])
        if self.order != KEPT:
            parts["order"] = choices.orders[self.order]
        return choices.model.settle(replace(base, **parts))

    def options(self, choices: Choices) -> list[str]:
        """Options with which a command draws the same."""
        found = [] if self.preset == CONFIGURED else ["--sampling", self.preset]
        if self.schedule in RAMPS:
            steps = ["--schedule.early", str(self.early), "--schedule.late", str(self.late)]
            found += ["--schedule", self.schedule, *steps]
        elif self.schedule != KEPT:
            found += ["--schedule", self.schedule, "--schedule.steps", str(self.early)]
        for name, value in (("solver", self.solver), ("solver.grid", self.grid), ("order", self.order)):
            found += [] if value == KEPT else [f"--{name}", value]
        base = choices.presets[self.preset]
        found += [] if self.num_stages == base.stages else ["--num_stages", str(self.num_stages)]
        found += [] if self.guidance == base.guidance.scale else ["--guidance.scale", f"{self.guidance:g}"]
        return found


FIELDS = tuple(field.name for field in fields(Setting))


def command_text(words: Sequence[str]) -> str:
    """A command as it is typed, a line for each option."""
    lines = list[list[str]]()
    for word in words:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, lines))


def _plain(kind: type[Any]) -> dict[str, Any]:
    """One of each class of a family of this package that can be made without saying how."""
    found = {}
    for name, member in known(kind).items():
        if member.__module__.startswith("disa_framework."):
            try:
                found[name] = member()
            except TypeError:  # it needs to be told
                continue
    return found


def _like(base: Solver, solver: Any) -> Solver:
    """A solver with those options of another one that both have, as `--solver` replaces it."""
    shared = [field.name for field in fields(solver) if field.init and hasattr(base, field.name)]
    return replace(solver, **{name: getattr(base, name) for name in shared})


def _on(solver: Any, grid: Grid) -> Solver:
    if not hasattr(solver, "grid"):
        raise ValueError(f"{type(solver).__name__} has no grid to choose: choose another solver, too")
    return replace(solver, grid=grid)
