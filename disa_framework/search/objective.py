"""What a trial of a study is: a setting, its cost, and the quality of ever more images drawn with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from optuna import TrialPruned
from optuna.trial import BaseTrial, Trial, TrialState

from disa_framework.generation import check_request
from disa_framework.models.lazy import Lazy, check_cache
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import PerStage
from disa_framework.search.cost import CostModel, Unit
from disa_framework.search.meter import Meter
from disa_framework.search.space import Setting, Space

RUNGS = (500, 1000, 2000)
MOST_STEPS = 500  # of a stage, when schedules are fitted to a limit
_HALVINGS = 30


class Costs:
    """What an image costs with a setting. Cost models are made when they are needed, and kept.

    Args:
        module: what draws.
        measure: makes the cost model of the module as it then is: `analytic_cost`, or `measure_cost` with a
            condition and a batch size.
    """

    def __init__(self, module: ARDiffusionModule, measure: Callable[[ARDiffusionModule], CostModel]) -> None:
        self.module, self.measure = module, measure
        self._models: dict[tuple[int, bool, Lazy | None], CostModel] = {}

    def model(self, setting: Setting) -> CostModel:
        """For all schedules of this setting's number of stages and cache, with its solver."""
        key = (setting.num_stages, setting.guidance.active, setting.cache)
        if key not in self._models:
            with setting.applied(self.module):
                self._models[key] = self.measure(self.module)
        return replace(self._models[key], solver=setting.solver)

    def __call__(self, setting: Setting) -> float:
        return self.model(setting)(setting.budget)

    @property
    def unit(self) -> Unit:
        """The same for all settings."""
        return self.model(Setting.of(self.module)).unit


def filled(setting: Setting, costs: Costs, limit: float, least: int = 1) -> Setting:
    """The setting with a multiple of its steps, as many as a limit allows, and in no stage fewer than `least`."""

    def scaled(factor: float) -> Setting:
        steps = [max(least, math.floor(factor * count)) for count in setting.budget]
        return replace(setting, schedule=PerStage(steps))

    low, high = 0.0, MOST_STEPS / max(setting.budget)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if costs(scaled(middle)) <= limit else (low, middle)
    return scaled(low)


def shortened(setting: Setting, costs: Costs, limit: float, least: int = 1) -> Setting:
    """The setting; if it costs more than a limit, with as many of its steps as that allows, see `filled`."""
    return setting if costs(setting) <= limit else filled(setting, costs, limit, least)


class Objective:
    """Called with a trial, gives its quality; with `pareto`, its quality and its cost.

    Every trial has the user attributes `setting` (the same for the same images), `budget` and `cost`, those that
    began with a given schedule `start`, those that took over steps `steps_of`, and those that went wrong `error`.

    Args:
        meter: draws and measures.
        costs: of settings.
        space: what is chosen.
        limit: greatest cost. What costs more is not drawn.
        rungs: numbers of images after which poor trials are stopped; the last is that of a whole trial.
        pareto: whether quality and cost are two objectives. Trials are then not stopped before their end.

    Raises:
        ValueError: for rungs that do not rise.
    """

    def __init__(
        self,
        meter: Meter,
        costs: Costs,
        space: Space,
        limit: float | None = None,
        rungs: Sequence[int] = RUNGS,
        pareto: bool = False,
    ) -> None:
        self.meter, self.costs, self.space, self.limit, self.pareto = meter, costs, space, limit, pareto
        self.rungs = tuple(rungs[-1:] if pareto else rungs)
        self.base = Setting.of(meter.module)
        meter.check(self.rungs)

    def check(self) -> None:
        """Raises a ValueError for what cannot be chosen, and one that names the cheapest cost if that is too much."""
        self.space.check(self.base)
        for count in self.space.num_stages:
            check_request(self.meter.module.model, count, None)
        if self.space.refresh:
            check_cache(self.meter.module.model, Lazy())
            if self.costs.unit != "seconds":
                raise ValueError("caching saves time, not evaluations: choose --space.refresh under a limit in seconds")
        least = min(map(self.costs, self.space.cheapest(self.base)))
        if self.limit is not None and least > self.limit:
            raise ValueError(
                f"no schedule of this space meets a limit of {self.limit:.6g} {self.costs.unit} per image: "
                f"the fastest takes {least:.6g}"
            )

    def setting(self, trial: BaseTrial) -> Setting:
        """What a trial draws with, or was drawn with, whatever costs have been measured since."""
        setting, drawn = self._chosen(trial), trial.user_attrs.get("budget")
        return setting if drawn in (None, [*setting.budget]) else replace(setting, schedule=PerStage(drawn))

    def _chosen(self, trial: BaseTrial) -> Setting:
        chosen, is_start = self.space.suggest(trial, self.base), "start" in trial.user_attrs
        if steps := trial.user_attrs.get("steps"):
            chosen = replace(self.base if is_start else chosen, schedule=PerStage(steps), num_stages=len(steps))
        if is_start or self.limit is None or self.pareto or not self.space.fill:
            return chosen
        return filled(chosen, self.costs, self.limit, self.space.schedule.least)

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        try:
            return self._evaluate(trial)
        except TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            raise

    def _evaluate(self, trial: Trial) -> float | tuple[float, float]:
        setting = self.setting(trial)
        cost = self.costs(setting)
        if self.limit is not None:
            # Before anything can end the trial: one without a constraint passes for feasible.
            trial.set_constraint("cost", cost / self.limit - 1)
        for name, value in {"setting": setting.key, "budget": setting.budget, "cost": cost}.items():
            trial.set_user_attr(name, value)
        if self.limit is not None and cost > self.limit:
            raise TrialPruned
        known = self._measured(trial, setting)
        value = math.inf
        for rung in self.rungs:
            value = known[rung] if rung in known else self.meter.measure(setting, rung)
            if not self.pareto:
                trial.report(value, rung)
                if rung < self.rungs[-1] and trial.should_prune():
                    raise TrialPruned
        return (value, cost) if self.pareto else value

    def _measured(self, trial: Trial, setting: Setting) -> dict[int, float]:
        """What earlier trials found for the same setting, by number of images."""
        known: dict[int, float] = {}
        for earlier in trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if earlier.user_attrs.get("setting") == setting.key:
                known |= earlier.intermediate_values
                if self.pareto and earlier.values:  # of several objectives nothing else is kept
                    known[self.rungs[-1]] = earlier.values[0]
        return known
