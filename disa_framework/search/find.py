"""The product's main call: finds how a model is best drawn with, within a limit.

Costs are measured; schedules that need no trials are calibrated; a study begins with them, and tries others; its best
are drawn again, compared with their rivals on noise that has decided nothing, and timed. What is found on the way is
kept in a folder, where a search that was stopped goes on.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from torch import nn

from disa_framework import values
from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Progress, silent
from disa_framework.resuming import RunIdentity, digest_of
from disa_framework.sampling.condition import Condition, cycled, size
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search.direct import Bars, Direct
from disa_framework.search.limits import Limit, Timed, fitted_ramps, meeting_the_limit, shortened
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Objective, sampling_of
from disa_framework.search.plan import Found, Plan, Point
from disa_framework.search.report import candidates, compare, kept_quality, line, summary, write_page, write_trials
from disa_framework.search.space import Space
from disa_framework.search.storage import open_storage
from disa_framework.search.study import (
    another_reports,
    cheapest,
    check_drawn,
    check_identity,
    choose,
    counted,
    on_front,
    ranked,
    search,
)

_FRONT = 4  # limits between the cheapest schedule and the baseline, at which a study of all costs begins
_OUTLOOK = 8  # of them, for which schedules are found where no limit is given

_log = logging.getLogger(__name__)


def without_bars(name: str) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(silent)


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
    kept = None if folder is None else Path(folder)
    found = meter.lead(lambda: _Search(meter, limit, plan, known, kept, bars).found())
    return found or sys.exit()  # where another process leads, which says why it found nothing


class _Search:
    """What the process that leads does."""

    def __init__(
        self, meter: Meter, limit: Limit, plan: Plan, known: RunIdentity, folder: Path | None, bars: Bars
    ) -> None:
        self.meter, self.limit, self.plan, self.folder, self.bars = meter, limit, plan, folder, bars
        model, base = meter.module.model, meter.module.sampling
        self.space = plan.space or Space.whole(model, base, cached=limit.unit == "seconds")
        self.direct = Direct(meter, plan, limit.unit, known, folder, bars)
        self.costs, self.base, self.known = self.direct.costs, meter.module.sampling, known
        self.storage: BaseStorage | None = None

    def found(self) -> Found:
        """What the plan's method finds."""
        if self.limit.worse is not None and self.plan.method != "study":
            raise ValueError(f"a quality is what a study measures, not the method {self.plan.method}")
        if not self.limit.given and self.plan.method != "pareto":
            return self._outlook()
        if not self.plan.tries:
            return self._direct()
        self._given_starts()
        if self.limit.unit == "evaluations":  # else costs are measured first
            self._objective().check()
        self.storage = self._storage()
        check_identity(self.storage, self.plan.study_name, self._identity())
        if self.plan.method == "pareto":
            return self._pareto()
        return self._study() if self.limit.worse is None else self._cheapest(1 + self.limit.worse)

    @cached_property
    def most(self) -> float | None:
        """The greatest cost, or none."""
        return self.limit.cost(self.costs)

    def _objective(self) -> Objective:
        plan, all_costs = self.plan, self.plan.method == "pareto" or self.limit.worse is not None
        return Objective(self.meter, self.costs, self.space, self.most, plan.rungs, pareto=all_costs)

    def _direct(self) -> Found:
        way = partial(getattr(self.direct, self.plan.method), self.base)
        timed = self._timed(way, [self.base])
        return self._best(timed.sampling if timed else way(self._given), timed)

    def _study(self) -> Found:
        plan, costs, limit, objective = self.plan, self.costs, self._given, self._objective()
        objective.check()
        ramps = fitted_ramps(costs, limit, num_stages=self.space.num_stages)
        study, unfinished = self._run(objective, self._given_starts() | self._calibrated(limit) | ramps)
        if unfinished:
            return unfinished
        with self.bars("finalists") as progress:
            best = choose(study, objective, plan.finalists, progress)
        chosen = sampling_of(best)
        winner, *rivals = compared = candidates(study, objective, best, chosen)
        least = min(self.space.schedule.low, *chosen.budget)  # starts may have fewer than the space
        within = partial(shortened, chosen, costs, least=least)
        timed = self._timed(within, [compared[name] for name in rivals])
        if timed and timed.sampling != chosen:
            compared = {f"{winner}, shortened": timed.sampling, **{name: compared[name] for name in rivals}}
        found = self._best(timed.sampling if timed else chosen, timed)
        with self.bars("comparison") as progress:
            rows = compare(study, objective, compared, timed.latencies if timed else (), plan.seeds, progress)
        if self.folder is not None:
            notes = [f"Of the winner: {timed}. The others keep the steps that were predicted to fit."] if timed else []
            title = f"Sampling within {timed.limit if timed else limit:.4g} {costs.unit} per sample"
            budgets = {row.name: row.sampling.budget for row in rows}
            write_page(self.folder / "report.html", study, objective, rows, budgets, title, notes)
        return replace(found, rows=rows, notes=(summary(study),))

    def _pareto(self) -> Found:
        objective = self._objective()
        study, unfinished = self._front(objective)
        if unfinished:
            return unfinished
        front = [Point(sampling_of(trial), *trial.values) for trial in on_front(study)]
        if self.folder is not None:
            self._write_front(front)
            budgets = {f"{point.cost:.4g}": point.sampling.budget for point in front}
            write_page(self.folder / "report.html", study, objective, (), budgets, "Pareto front of sampling configs")
        sampling, _, cost = front[-1]
        unit = self.costs.unit
        return Found(sampling, cost, unit, front=tuple(front), notes=(summary(study),), folder=self.folder)

    def _cheapest(self, times: float) -> Found:
        """The config of least cost whose distance is at most so many times the baseline's."""
        objective, costs = self._objective(), self.costs
        study, unfinished = self._front(objective)
        if unfinished:
            return unfinished
        with self.bars("finalists") as progress:
            chosen = cheapest(study, objective, times, progress)
        compared = {"cheapest": chosen, "baseline": self.base}
        latencies = self.meter.latencies([*compared.values()]) if costs.unit == "seconds" else ()
        with self.bars("comparison") as progress:
            rows = compare(study, objective, compared, latencies, self.plan.seeds, progress)
        found, notes = self._best(chosen, None), [summary(study), kept_quality(rows, times)]
        if self.folder is not None:
            budgets, title = {row.name: row.sampling.budget for row in rows}, "The least cost for this quality"
            write_page(self.folder / "report.html", study, objective, rows, budgets, title, notes[1:])
        return replace(found, rows=rows, notes=tuple(notes))

    def _front(self, objective: Objective) -> tuple[Study, Found | None]:
        """The study of all costs, see `_run`."""
        objective.check()
        starts = self._given_starts()
        for limit in self._limits(_FRONT):
            more = fitted_ramps(self.costs, limit, falls=(10.0,)) | self._calibrated(limit)
            starts |= {f"{name} at {limit:.3g}": start for name, start in more.items()}
        study, unfinished = self._run(objective, starts)
        if not unfinished:
            check_drawn(study)
        return study, unfinished

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
        if self.folder is not None:
            self._write_front(front)
        most = plan.trials * plan.rungs[-1]
        study = (
            f"a study would draw {plan.trials * plan.rungs[0]:,} to {most:,} images, at the baseline's cost of "
            f"{costs(self.base):.4g} {costs.unit} each: give a limit to begin it"
        )
        sampling, _, cost = front[-1]
        return Found(sampling, cost, costs.unit, front=tuple(front), notes=(study,), folder=self.folder)

    def _limits(self, count: int) -> list[float]:
        """Between the cheapest of the space and the baseline, in even ratios."""
        highest = self.most or self.costs(self.base)
        lowest = min(map(self.costs, self.space.cheapest(self.base)))
        return [lowest * (highest / lowest) ** ((i + 1) / count) for i in range(count)]

    @property
    def _given(self) -> float:
        assert self.most is not None
        return self.most

    def _given_starts(self) -> dict[str, SamplingConfig]:
        starts = {f"{name} (given)": self.meter.module.model.settle(start) for name, start in self.plan.starts.items()}
        if adaptive := [name for name, start in starts.items() if start.schedule.adapts]:
            raise ValueError(f"{adaptive[0]} decides its steps while it draws: a study begins with fixed ones")
        return starts

    def _calibrated(self, limit: float) -> dict[str, SamplingConfig]:
        return self.direct.starts(limit, self.space.num_stages)

    def _run(self, objective: Objective, starts: Mapping[str, SamplingConfig]) -> tuple[Study, Found | None]:
        """The study with all its trials; if it is for another worker to say what was found, what is known so far."""
        plan, begun, storage = self.plan, datetime.now(), self.storage
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
        if not another_reports(study, storage, begun):
            return study, None
        best = sampling_of(ranked(study)[0]) if ranked(study) else self.base
        note = "other workers are still drawing: the last one says what was found"
        return study, Found(best, self.costs(best), self.costs.unit, notes=(summary(study), note))

    def _identity(self) -> RunIdentity:
        """What decides what trials find."""
        plan, meter = self.plan, self.meter
        return {
            **self.known, "metric": described(meter.quality), "space": repr(self.space), "rungs": [*plan.rungs],
            "method": plan.method, "limit": values.dump(self.limit), "batch_size": plan.batch_size,
            "precision": meter.precision,
        }  # fmt: skip

    def _storage(self) -> BaseStorage | None:
        storage = self.plan.storage
        if storage is None and self.folder is not None:
            storage = str(self.folder / "study.db")
        return open_storage(storage) if isinstance(storage, str) else storage

    def _timed(self, within: partial[SamplingConfig], rivals: Sequence[SamplingConfig]) -> Timed | None:
        """What is found within the limit on the clock; `None` where the limit is not in seconds."""
        if self.costs.unit != "seconds":
            return None
        return meeting_the_limit(within, self.costs, self._given, self.meter.latencies, rivals, self.limit.times)

    def _best(self, sampling: SamplingConfig, timed: Timed | None) -> Found:
        """The config, written."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            sampling.save(self.folder / "best.yaml")
        return Found(sampling, self.costs(sampling), self.costs.unit, timed, folder=self.folder)

    def _write_front(self, front: Sequence[Point]) -> None:
        assert self.folder is not None
        folder = self.folder / "front"
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("*.yaml"):  # the front may have become shorter
            earlier.unlink()
        for place, point in enumerate(front):
            point.sampling.save(folder / f"{place:02}.yaml")

    def _write_trials(self, study: Study) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_trials(self.folder / "trials.csv", study)


def described(part: Any) -> Any:
    """What an object is, as plain data: its class and its plain attributes, networks by their weights."""
    content = {"class_path": values.path_of(type(part))}
    for name, value in vars(part).items():
        if isinstance(value, nn.Module):
            content[name] = digest_of(value)
        elif isinstance(value, LightningDataModule):
            content[name] = described(value)
        elif value is not None and name[0] != "_":
            with suppress(TypeError):
                content[name] = values.dump(value)
    return content
