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
from disa_framework.search.report import candidates, compare, line, summary, write_page, write_trials
from disa_framework.search.storage import open_storage
from disa_framework.search.study import another_reports, check_drawn, check_identity, choose, counted, ranked, search

_FRONT = 4  # limits between the cheapest schedule and the baseline, at which a Pareto study begins

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
        self.direct = Direct(meter, plan, limit.unit, known, folder, bars)
        self.costs, self.base, self.known = self.direct.costs, meter.module.sampling, known
        self.storage: BaseStorage | None = None

    def found(self) -> Found:
        """What the plan's method finds."""
        if self.plan.method != "pareto" and self.limit.most is None and self.limit.times is None:
            raise ValueError("give a limit: seconds, a speedup, or evaluations")
        if not self.plan.tries:
            return self._direct()
        self._given_starts()
        if self.limit.unit == "evaluations":  # else costs are measured first
            self._objective().check()
        self.storage = self._storage()
        check_identity(self.storage, self.plan.study_name, self._identity())
        return self._pareto() if self.plan.method == "pareto" else self._study()

    @cached_property
    def most(self) -> float | None:
        """The greatest cost, or none."""
        return self.limit.cost(self.costs)

    def _objective(self) -> Objective:
        plan = self.plan
        return Objective(self.meter, self.costs, plan.space, self.most, plan.rungs, pareto=plan.method == "pareto")

    def _direct(self) -> Found:
        way = partial(getattr(self.direct, self.plan.method), self.base)
        timed = self._timed(way, [self.base])
        return self._best(timed.sampling if timed else way(self._given), timed)

    def _study(self) -> Found:
        plan, costs, limit, objective = self.plan, self.costs, self._given, self._objective()
        objective.check()
        ramps = fitted_ramps(costs, limit, num_stages=plan.space.num_stages)
        study, unfinished = self._run(objective, self._given_starts() | self._calibrated(limit) | ramps)
        if unfinished:
            return unfinished
        with self.bars("finalists") as progress:
            best = choose(study, objective, plan.finalists, progress)
        chosen = sampling_of(best)
        winner, *rivals = compared = candidates(study, objective, best, chosen)
        least = min(plan.space.schedule.low, *chosen.budget)  # starts may have fewer than the space
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
        plan, costs, objective = self.plan, self.costs, self._objective()
        objective.check()
        starts, highest = self._given_starts(), self.most or costs(self.base)
        lowest = min(map(costs, plan.space.cheapest(self.base)))
        for i in range(_FRONT):
            limit = lowest * (highest / lowest) ** ((i + 1) / _FRONT)
            more = fitted_ramps(costs, limit, falls=(10.0,)) | self._calibrated(limit)
            starts |= {f"{name} at {limit:.3g}": start for name, start in more.items()}
        study, unfinished = self._run(objective, starts)
        if unfinished:
            return unfinished
        check_drawn(study)
        best = {trial.user_attrs["key"]: trial for trial in study.best_trials}  # some are drawn several times
        front = sorted((Point(sampling_of(trial), *trial.values) for trial in best.values()), key=lambda p: p.cost)
        if self.folder is not None:
            self._write_front(self.folder / "front", front)
            budgets = {f"{point.cost:.4g}": point.sampling.budget for point in front}
            write_page(self.folder / "report.html", study, objective, (), budgets, "Pareto front of sampling configs")
        sampling, _, cost = front[-1]
        return Found(sampling, cost, costs.unit, front=tuple(front), notes=(summary(study),), folder=self.folder)

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
        return self.direct.starts(limit, self.plan.space.num_stages)

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
            **self.known, "metric": described(meter.quality), "space": repr(plan.space), "rungs": [*plan.rungs],
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

    def _write_front(self, folder: Path, front: Sequence[Point]) -> None:
        folder.mkdir(exist_ok=True)
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
