"""What needs no trials: costs and profiles, measured once and kept, and the schedules that follow from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from disa_framework import values
from disa_framework.measure.cost import CostModel, Unit, analytic_cost, held_out_error, measure_cost
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Bars
from disa_framework.resuming import RunIdentity, fingerprint
from disa_framework.runtime.devices import name_of
from disa_framework.sampling.condition import Condition, digest, size, take
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant, Linear, PerStage, TwoStage
from disa_framework.search.adaptation import fit_adaptive
from disa_framework.search.calibration import Calibration, Profile, measure_profile
from disa_framework.search.fitting import Fitting, fit_solver
from disa_framework.search.folder import Folder
from disa_framework.search.learning import learn
from disa_framework.search.limits import Costs, sharing_costs
from disa_framework.search.meter import Meter
from disa_framework.search.plan import Plan
from disa_framework.solvers import Solver

T = TypeVar("T")

_HELD_OUT = (Constant(10), Linear(30, 5), TwoStage(40, 4))
_REPEATS = 3  # timed runs of each of them

_log = logging.getLogger(__name__)


class Direct:
    """Finds schedules within a limit without trials. Each way returns the config that it is given, with the schedule.

    Args:
        meter: draws.
        plan: of the search.
        unit: of all costs.
        known: identity of the run.
        folder: keeps costs, profiles and solvers, under names that say what decided them.
        bars: show how far calibration is.
    """

    def __init__(self, meter: Meter, plan: Plan, unit: Unit, known: RunIdentity, folder: Folder, bars: Bars) -> None:
        self.meter, self.plan, self.folder, self.bars = meter, plan, folder, bars
        self.known = {"model": known["model"], "tokenizer": known["tokenizer"], "precision": meter.precision}
        self.calibration, self.fitting = plan.calibration or Calibration(), plan.fitting or Fitting()
        self.count, self.seed = plan.profile_samples, meter.module.seed
        self.costs = Costs(meter.module, analytic_cost if unit == "evaluations" else self._timed_cost)

    def fit(self, base: SamplingConfig, limit: float) -> SamplingConfig:
        """A solver that is fitted to the head, with the schedule of its tables that shifts what is drawn least."""
        fitting = self.fitting
        self._check(base, limit, fitting.steps[0])
        fitted = replace(base, solver=self._solver(base))
        calibration = Calibration(
            fitting.steps, max(fitting.steps), fitting.reference, fitting.reference_steps, self.calibration.stride
        )
        budget = self._profile(fitted, limit, calibration).schedule(limit, self.costs.model(fitted)).steps
        steps = (fitted.solver.at(stage).taken(count) for stage, count in enumerate(budget))
        return replace(fitted, schedule=PerStage(tuple(steps)))  # where a table of so many steps was no better

    def calibrate(self, base: SamplingConfig, limit: float) -> SamplingConfig:
        """The schedule that shifts what is drawn least, by the sizes of each stage's shifts."""
        profile = self._profile(base, limit, self.calibration)
        return replace(base, schedule=profile.schedule(limit, self.costs.model(base)))

    def learn(self, base: SamplingConfig, limit: float) -> SamplingConfig:
        """The schedule that shifts what is drawn least, by what all stages' shifts add up to."""
        profile = self._profile(base, limit, self.calibration)
        return replace(base, schedule=learn(profile, limit, self.costs.model(base)))

    def adapt(self, base: SamplingConfig, limit: float) -> SamplingConfig:
        """The adaptive schedule that spends the limit on a batch."""
        meter, cost = self.meter, self.costs.model(base)
        with meter.on_device():
            schedule = fit_adaptive(
                meter.module.model, limit, self._some(meter.batch_size), base, cost=cost, signal=self.plan.signal,
                batch_size=meter.batch_size, seed=self.seed,
            )  # fmt: skip
        return replace(base, schedule=schedule)

    @property
    def ways(self) -> Mapping[str, Callable[[SamplingConfig, float], SamplingConfig]]:
        """By which a study begins, by name, the strongest last."""
        ways = {"Calibrated": self.calibrate, "Learned": self.learn} if self.plan.calibration else {}
        return ways | ({"Fitted": self.fit} if self.plan.fitting else {})

    def starts(self, limit: float, num_stages: Sequence[int], ways: Sequence[str]) -> dict[str, SamplingConfig]:
        """What is found from profiles, by name, for the baseline's and other numbers of stages."""
        found, base = {}, self.costs.base
        for count in dict.fromkeys((base.stages, *num_stages)):
            stages = f" ({count} stages)" if count != base.stages else ""
            for name in ways:
                try:
                    found[f"{name}{stages}"] = self.ways[name](replace(base, num_stages=count), limit)
                except ValueError as error:  # the limit is below the menu, or grids have no such number of steps
                    _log.info("beginning without a %s schedule%s: %s", name.lower(), stages, error)
        return found

    def _timed_cost(self, module: ARDiffusionModule) -> CostModel:
        """Seconds with what a module draws with."""
        asked, sampling, batch_size = self.meter.batch(), module.sampling, self.meter.batch_size

        def measured() -> CostModel:
            model = measure_cost(module, asked, batch_size)
            if sharing_costs(sampling) == sharing_costs(self.costs.base):  # which stands for the others
                held_out = [schedule.budget(sampling.stages) for schedule in _HELD_OUT]
                error = held_out_error(model, module, asked, held_out, repeats=_REPEATS)
                _log.info("predicted times are %.1f%% off, in the median over budgets not fitted to", 100 * error)
            return model

        def load(path: Path) -> CostModel:
            return CostModel.load(path, module.model.process, sampling.solver)

        with self.meter.on_device():
            name = self._name(
                "cost", sharing_costs(sampling), condition=digest(asked), batch_size=batch_size, runtime=module.runtime,
                device=name_of(module.model.device), threads=torch.get_num_threads(),
            )  # fmt: skip
            return self.folder.once(f"{name}.json", measured, CostModel.save, load)

    def _solver(self, base: SamplingConfig) -> Solver:
        """Fitted to the head for what a config has besides solver and schedule."""
        alike = replace(base, schedule=Constant(), solver=self.fitting.reference)
        name = self._name("solver", alike, fitting=values.text(self.fitting), **self._samples)
        fitted = partial(self._drawn, "fit", fit_solver, base, self.fitting)
        return self.folder.once(f"{name}.yaml", fitted, _save, lambda path: SamplingConfig.load(path).solver)

    def _profile(self, base: SamplingConfig, limit: float, calibration: Calibration) -> Profile:
        """That of a config; a ValueError if nothing on the menu meets the limit."""
        self._check(base, limit, calibration.menu[0])
        alike = replace(base, schedule=Constant())
        name = self._name("profile", alike, calibration=values.text(calibration), **self._samples)
        measured = partial(self._drawn, "calibration", measure_profile, base, calibration)
        return self.folder.once(f"{name}.safetensors", measured, Profile.save, Profile.load)

    def _check(self, base: SamplingConfig, limit: float, fewest: int) -> None:
        """Raises a ValueError if not even the fewest steps meet the limit: then there is nothing to measure."""
        cheapest = self.costs(replace(base, schedule=Constant(fewest)))
        if cheapest > limit:
            raise ValueError(f"no budget costs at most {limit:.6g}: the cheapest feasible cost is {cheapest:.6g}")

    def _drawn(self, title: str, measure: Callable[..., T], base: SamplingConfig, how: Any) -> T:
        """What is measured with samples of the model."""
        with self.bars(f"{title}, {base.stages} stages") as progress, self.meter.on_device():
            model, asked = self.meter.module.model, self._some(self.count)
            return measure(model, asked, base, how, batch_size=self.count, seed=self.seed, progress=progress)

    def _some(self, count: int) -> Condition | None:
        """What some of the samples are asked to be, of all classes or prompts alike."""
        condition = self.meter.condition
        if condition is None:
            return None
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(size(condition), generator=generator).tolist()
        return take(condition, [order[i % len(order)] for i in range(count)])

    @cached_property
    def _samples(self) -> dict[str, Any]:
        """What decides which samples are measured."""
        return {"condition": digest(self._some(self.count)), "samples": self.count, "seed": self.seed}

    def _name(self, kind: str, sampling: SamplingConfig, **more: Any) -> str:
        """For what these decide, beside model, tokenizer and precision."""
        return f"{kind}-{fingerprint({**self.known, 'sampling': sampling.dump(), **more})}"


def _save(solver: Solver, path: Path) -> None:
    SamplingConfig(solver=solver).save(path)
