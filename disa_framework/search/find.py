"""The product's main call: finds how a model is best drawn with, within a limit.

Costs are measured; schedules that need no trials are calibrated; a study begins with them, and tries others; its best
are drawn again, compared with their rivals on noise that has decided nothing, and timed. What is found on the way is
kept in a folder, where a search that was stopped goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from disa_framework import values
from disa_framework.metrics.quality import Quality, described
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Bars, without_bars
from disa_framework.resuming import RunIdentity
from disa_framework.sampling.condition import Condition, cycled, size
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search.direct import Direct
from disa_framework.search.finalists import candidates, cheapest, choose, compare, on_front
from disa_framework.search.folder import Folder
from disa_framework.search.limits import Limit, Timed, fitted_ramps, meeting_the_limit, shortened
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Objective, sampling_of
from disa_framework.search.plan import Found, Plan, Point
from disa_framework.search.report import kept_quality, line, summary, write_page, write_trials
from disa_framework.search.space import Space
from disa_framework.search.storage import open_storage
from disa_framework.search.study import another_reports, check_identity, counted, ranked, search

_FRONT = 4  # limits between the cheapest schedule and the baseline, at which a study of all costs begins
_CHEAPER = 2  # the same of a study that looks for the cheapest, below the baseline's cost
_FALLS = (3.0, 10.0)  # of the ramps that it begins with, from the first stage to the last
_OUTLOOK = 8  # of them, for which schedules are found where no limit is given

_log = logging.getLogger(__name__)


def find(
    module: ARDiffusionModule,
    limit: Limit,
    condition: Condition | None = None,
    metric: Quality | None = None,
    plan: Plan = Plan(),
    folder: str | Path | None = None,
    bars: Bars = without_bars,
) -> Found:
    """Finds how to draw best within a limit.

    A search that was stopped goes on where it was when it is called again with its folder, and shares its trials with
    others that are called at the same time; the one that ends last says what was found. The logger `disa_framework`
    tells how it goes on.

    Args:
        module: what draws; its sampling config is the baseline, and has what is not chosen.
        limit: what a sample may cost.
        condition: what samples are asked to be, in turn; `None` draws unconditional ones.
        metric: what is made small, where samples are drawn and measured.
        plan: how to search.
        folder: for all that is kept; `None` keeps nothing.
        bars: shows how far something is.

    Raises:
        ValueError: if nothing is within the limit, or inputs do not fit each other.
    """
    if plan.tries and metric is None:
        raise ValueError(f"the method {plan.method} measures samples: give a metric")
    if condition is not None:
        module.model.check_condition(condition)
        condition = cycled(condition, max(*plan.rungs, size(condition)))
    meter = Meter(module, metric if plan.tries else None, condition, plan.batch_size, plan.trainer)
    known = module.identity(condition, plan.batch_size)  # before the weights are given another precision
    found = meter.lead(lambda: _Search(meter, limit, plan, known, Folder(folder), bars).found())
    return found or sys.exit()  # where another process leads, which says why it found nothing


class _Search:
    """What the process that leads does."""

    def __init__(self, meter: Meter, limit: Limit, plan: Plan, known: RunIdentity, folder: Folder, bars: Bars) -> None:
        self.meter, self.limit, self.plan, self.known, self.folder, self.bars = meter, limit, plan, known, folder, bars
        model, self.base = meter.module.model, meter.module.sampling
        self.space = plan.space or Space.whole(model, self.base, cached=limit.unit == "seconds")
        self.direct = Direct(meter, plan, limit.unit, known, folder, bars)
        self.costs = self.direct.costs

    def found(self) -> Found:
        """What the plan's method finds."""
        if self.limit.worse is not None and self.plan.method != "study":
            raise ValueError(f"a quality is what a study measures, not the method {self.plan.method}")
        if not self.limit.given and self.plan.method != "pareto":
            return self._outlook()
        return self._tried() if self.plan.tries else self._direct()

    @cached_property
    def most(self) -> float | None:
        """The greatest cost, or none."""
        return self.limit.cost(self.costs)

    @property
    def _given(self) -> float:
        assert self.most is not None
        return self.most

    def _direct(self) -> Found:
        way = partial(getattr(self.direct, self.plan.method), self.base)
        timed = self._timed(way, [self.base])
        return self._kept(self._found(timed.sampling if timed else way(self._given), timed=timed))

    def _outlook(self) -> Found:
        """What can be expected of each cost, by profiles alone, and what a study would take."""
        plan, costs, front = self.plan, self.costs, list[Point]()
        method = ("fit" if plan.fitting else "calibrate") if plan.tries else plan.method
        for limit in self._limits(_OUTLOOK):
            with suppress(ValueError):  # less than a step a stage
                sampling = getattr(self.direct, method)(self.base, limit)
                front.append(Point(sampling, None, costs(sampling)))
        front = sorted({point.cost: point for point in front}.values(), key=lambda point: point.cost)
        if not front:
            raise ValueError("no budget costs less than the baseline: give a baseline of more steps, or a limit")
        most = plan.trials * plan.rungs[-1]
        study = (
            f"a study would draw {plan.trials * plan.rungs[0]:,} to {most:,} images, at the baseline's cost of "
            f"{costs(self.base):.4g} {costs.unit} each: give a limit to begin it"
        )
        return self._kept(self._found(front[-1].sampling, front=tuple(front), notes=(study,)))

    def _tried(self) -> Found:
        """What is best of what a study draws and measures, unless another worker is to say it."""
        plan, given = self.plan, self._given_starts()
        if self.limit.unit == "evaluations":  # else costs are measured first
            self._objective().check()
        asked = self.folder.place("study.db") if plan.storage is None else plan.storage
        storage = open_storage(str(asked)) if isinstance(asked, str | Path) else asked
        if isinstance(asked, Path):
            _log.info("the trials can be watched: optuna-dashboard sqlite:///%s", asked)
        check_identity(storage, plan.study_name, self._identity())
        objective = self._objective()
        objective.check()
        starts, begun = given | self._starts(objective), datetime.now()
        study = self._run(objective, storage, starts)
        if another_reports(study, storage, begun):
            best = sampling_of(ranked(study)[0]) if ranked(study) else self.base
            note = "other workers are still drawing: the last one says what was found"
            return self._found(best, notes=(summary(study), note))
        if plan.method == "pareto":
            return self._pareto(study, objective)
        return self._winner(study, objective) if self.limit.worse is None else self._cheapest(study, objective)

    def _objective(self) -> Objective:
        pareto, rungs = self.plan.method == "pareto", self.plan.rungs
        worse = self.limit.worse
        return Objective(self.meter, self.costs, self.space, self.most, rungs, pareto, worse, self.folder)

    def _given_starts(self) -> dict[str, SamplingConfig]:
        starts = {f"{name} (given)": self.meter.module.model.settle(start) for name, start in self.plan.starts.items()}
        if adaptive := [name for name, start in starts.items() if start.schedule.adapts]:
            raise ValueError(f"{adaptive[0]} decides its steps while it draws: a study begins with fixed ones")
        return starts

    def _starts(self, objective: Objective) -> dict[str, SamplingConfig]:
        """What needs no trials, within the limit; where there are many costs, within several, and less of it within
        each: so many starts would leave no trials for anything else."""
        counts, ways = self.space.num_stages, [*self.direct.ways]
        if objective.worse is not None:
            *limits, _ = self._limits(_CHEAPER + 1)
            found = {limit: self._within(limit, counts, ways[-1:], ()) for limit in reversed(limits)}
        elif objective.pareto:
            found = {limit: self._within(limit, (), ways, _FALLS[-1:]) for limit in self._limits(_FRONT)}
        else:
            return self._within(self._given, counts, ways, _FALLS)
        return {f"{name} at {limit:.3g}": start for limit, starts in found.items() for name, start in starts.items()}

    def _within(
        self, limit: float, num_stages: Sequence[int], ways: Sequence[str], falls: Sequence[float]
    ) -> dict[str, SamplingConfig]:
        """What needs no trials, by name: found in these ways, and the hand-made schedules."""
        ramps = fitted_ramps(self.costs, limit, falls, num_stages, self.space.solver)
        return self.direct.starts(limit, num_stages, ways) | ramps

    def _limits(self, count: int) -> list[float]:
        """Between the fewest steps and stages of the space and the baseline, in even ratios."""
        highest = self.most or self.costs(self.base)
        lowest = min(map(self.costs, self.space.steps.cheapest(self.base)))
        return [lowest * (highest / lowest) ** ((i + 1) / count) for i in range(count)]

    def _run(self, objective: Objective, storage: BaseStorage | None, starts: Mapping[str, SamplingConfig]) -> Study:
        """The study with all its trials."""
        plan = self.plan
        if 2 * len(starts) > plan.trials:
            _log.info("%d of %d trials are what it begins with: more search further", len(starts), plan.trials)
        with self.bars("trials") as progress:

            def tell(study: Study, trial: FrozenTrial) -> None:
                progress(len(counted(study)), plan.trials)
                _log.info("%s", line(trial))
                self._write_trials(study)

            study = search(
                objective, plan.trials, starts=starts, storage=storage, name=plan.study_name, identity=self._identity(),
                seed=self.meter.module.seed, callbacks=[tell],
            )  # fmt: skip
        self._write_trials(study)
        return study

    def _identity(self) -> RunIdentity:
        """What decides what trials find."""
        plan, meter = self.plan, self.meter
        return {
            **self.known, "metric": described(meter.quality), "space": values.text(self.space), "rungs": [*plan.rungs],
            "method": plan.method, "limit": values.dump(self.limit), "batch_size": plan.batch_size,
            "precision": meter.precision,
        }  # fmt: skip

    def _winner(self, study: Study, objective: Objective) -> Found:
        """The config of least distance within the limit."""
        plan, costs, limit = self.plan, self.costs, self._given
        with self.bars("finalists") as progress:
            best = choose(study, objective, plan.finalists, progress)
        chosen = sampling_of(best)
        winner, *rivals = compared = candidates(study, objective, best, chosen)
        least = min(self.space.schedule.low, *chosen.budget)  # starts may have fewer than the space
        within = partial(shortened, chosen, costs, least=least)
        timed = self._timed(within, [compared[name] for name in rivals])
        if timed and timed.sampling != chosen:
            compared = {f"{winner}, shortened": timed.sampling, **{name: compared[name] for name in rivals}}
        found = self._kept(self._found(timed.sampling if timed else chosen, timed=timed))
        with self.bars("comparison") as progress:
            rows = compare(study, objective, compared, timed.latencies if timed else (), plan.seeds, progress)
        notes = [f"Of the winner: {timed}. The others keep the steps that were predicted to fit."] if timed else []
        title = f"Sampling within {timed.limit if timed else limit:.4g} {costs.unit} per sample"
        if page := self.folder.place("report.html"):
            write_page(page, study, objective, title, compared, rows, notes)
        return replace(found, rows=rows, notes=(summary(study),))

    def _cheapest(self, study: Study, objective: Objective) -> Found:
        """The config of least cost whose distance is at most so many times the baseline's."""
        assert self.limit.worse is not None
        times = 1 + self.limit.worse
        with self.bars("finalists") as progress:
            chosen = cheapest(study, objective, times, progress)
        found, compared = self._kept(self._found(chosen)), {"cheapest": chosen, "baseline": self.base}
        latencies = self.meter.latencies([*compared.values()]) if found.unit == "seconds" else ()
        with self.bars("comparison") as progress:
            rows = compare(study, objective, compared, latencies, self.plan.seeds, progress)
        kept = kept_quality(rows, times)
        if page := self.folder.place("report.html"):
            write_page(page, study, objective, "The least cost for this quality", compared, rows, [kept])
        return replace(found, rows=rows, notes=(summary(study), kept))

    def _pareto(self, study: Study, objective: Objective) -> Found:
        front = tuple(Point(sampling_of(trial), *trial.values) for trial in on_front(study))
        if page := self.folder.place("report.html"):
            samplings = {f"{point.cost:.4g}": point.sampling for point in front}
            write_page(page, study, objective, "Pareto front of sampling configs", samplings)
        found = self._found(front[-1].sampling, front=front, notes=(summary(study),))
        return self._kept(replace(found, cost=front[-1].cost))

    def _timed(self, within: partial[SamplingConfig], rivals: Sequence[SamplingConfig]) -> Timed | None:
        """What is found within the limit on the clock; `None` where the limit is not in seconds."""
        if self.costs.unit != "seconds":
            return None
        return meeting_the_limit(within, self.costs, self.limit, self.meter.latencies, rivals)

    def _found(self, sampling: SamplingConfig, **more: Any) -> Found:
        return Found(sampling, self.costs(sampling), self.costs.unit, **more)

    def _kept(self, found: Found) -> Found:
        """With the folder, where `best.yaml` is written, or the front."""
        if found.front and (front := self.folder.place("front")):
            front.mkdir(exist_ok=True)
            for earlier in front.glob("*.yaml"):  # the front may have become shorter
                earlier.unlink()
            for place, point in enumerate(found.front):
                point.sampling.save(front / f"{place:02}.yaml")
        elif best := self.folder.place("best.yaml"):
            found.sampling.save(best)
        return replace(found, folder=self.folder.path)

    def _write_trials(self, study: Study) -> None:
        if path := self.folder.place("trials.csv"):
            write_trials(path, study)
