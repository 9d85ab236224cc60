"""The end of a study: its best are drawn again with other noise, one is chosen, and compared with its rivals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, zip_longest

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from disa_framework.progress import Progress, silent
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search.limits import shortened
from disa_framework.search.objective import Objective, distance_of, key_of, over_limit, sampling_of
from disa_framework.search.study import ranked

_AGAIN = 2  # times that a finalist is drawn again


@dataclass(frozen=True)
class Measured:
    """A sampling config, drawn with several seeds of the noise.

    Attributes:
        name: what it is called.
        sampling: what was drawn with.
        distances: one for each seed.
    """

    name: str
    sampling: SamplingConfig
    distances: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.distances)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds."""
        return statistics.stdev(self.distances) if len(self.distances) > 1 else 0.0

    @property
    def ends(self) -> str:
        """Steps of the first and of the last stage, as text."""
        return f"{self.sampling.budget[0]} → {self.sampling.budget[-1]}"

    @property
    def distance(self) -> str:
        """Mean and spread as text."""
        return f"{self.mean:.4g}" + (f" ± {self.spread:.2g}" if len(self.distances) > 1 else "")


@dataclass(frozen=True)
class Row(Measured):
    """A line of the comparison.

    Attributes:
        cost: as predicted.
        latency: timed seconds per sample, where costs are seconds.
    """

    cost: float
    latency: float | None


def choose(study: Study, objective: Objective, finalists: int = 5, progress: Progress = silent) -> FrozenTrial:
    """The trial that is best on average when the best few are drawn with other noise, too: some are there by luck.

    Args:
        finalists: how many are drawn again; 1 takes the study at its word.
        progress: is told of what is drawn.

    Raises:
        ValueError: if no trial was drawn to its end.
    """
    check_drawn(study)
    best, seed = ranked(study)[:finalists], objective.meter.module.seed
    if len(best) == 1:
        return best[0]
    seeds = range(seed - _AGAIN, seed)  # which neither trials nor the comparison have
    again = _drawn_again(study, objective, [sampling_of(trial) for trial in best], seeds, progress)
    means = [statistics.mean([trial.values[0], *others]) for trial, others in zip(best, again, strict=True)]
    return best[means.index(min(means))]


def on_front(study: Study) -> list[FrozenTrial]:
    """What nothing else beats in both distance and cost, each config once, by rising cost.

    Raises:
        ValueError: if no trial was drawn to its end.
    """
    check_drawn(study)
    best = {trial.user_attrs["key"]: trial for trial in study.best_trials}
    return sorted(best.values(), key=lambda trial: trial.user_attrs["cost"])


def cheapest(study: Study, objective: Objective, times: float, progress: Progress = silent) -> SamplingConfig:
    """The cheapest trial whose distance is at most so many times the baseline's when both are drawn with other noise,
    too; the baseline if none is.

    Args:
        progress: is told of what is drawn.
    """
    good, seed = ranked(study), objective.meter.module.seed

    def mean(sampling: SamplingConfig) -> float:
        (distances,) = _drawn_again(study, objective, [sampling], range(seed - _AGAIN, seed))
        return statistics.mean(distances)

    most = times * mean(objective.base)
    for place, trial in enumerate(good):
        progress(place, len(good))
        if mean(sampling_of(trial)) <= most:
            return sampling_of(trial)
    return objective.base


def check_drawn(study: Study) -> None:
    """Raises a ValueError that says why, if no trial was drawn to its end."""
    if not ranked(study):
        errors = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        raise ValueError(f"no trial was drawn to its end; {len(errors)} failed{f': {errors[0]}' if errors else ''}")


def candidates(
    study: Study, objective: Objective, best: FrozenTrial, chosen: SamplingConfig
) -> dict[str, SamplingConfig]:
    """What is worth comparing: the best trial with what was chosen, the best start of each family, the baseline.

    Where more was chosen than a schedule, the best start is there once more with the rest of the winner's config and
    no more steps than the limit then allows, which tells what the schedule alone is worth.
    """
    families: dict[str, str] = {}
    found = {}
    for trial in sorted(filter(_has_started, study.get_trials(deepcopy=False)), key=_standing):
        start = trial.user_attrs["start"]
        if families.setdefault(start.partition(" ")[0], start) == start:
            found[start] = sampling_of(trial)
    name = best.user_attrs.get("start")
    found.pop(name, None)
    chose_more = replace(chosen, schedule=objective.base.schedule) != objective.base
    start = next(iter(found), None)
    if start and chose_more and chosen.stages == found[start].stages:
        other = replace(chosen, schedule=found[start].schedule)
        if objective.limit is not None:
            other = shortened(other, objective.costs, objective.limit)
        found[f"{start}, else as the winner"] = other
    return {f"winner ({name})" if name else "winner": chosen, **found, "baseline": objective.base}


def _has_started(trial: FrozenTrial) -> bool:
    """Whether a trial is of a given start, and samples were drawn with it."""
    drawn = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not over_limit(trial)
    return drawn and "start" in trial.user_attrs


def _standing(trial: FrozenTrial) -> tuple[bool, float]:
    """Whole trials first, the best first; of one that was stopped the last distance counts."""
    distance = distance_of(trial)
    assert distance is not None
    return trial.state != TrialState.COMPLETE, distance


def compare(
    study: Study,
    objective: Objective,
    samplings: Mapping[str, SamplingConfig],
    latencies: Sequence[float],
    seeds: int,
    progress: Progress = silent,
) -> tuple[Row, ...]:
    """Measures configs with noise that has decided nothing; what the study has measured before is not drawn again.

    Args:
        samplings: by name.
        latencies: seconds per sample of each; none where costs are no seconds.
        seeds: how many.
        progress: is told of what is drawn.
    """
    first = objective.meter.module.seed + 1
    found = _drawn_again(study, objective, [*samplings.values()], range(first, first + seeds), progress)
    return tuple(
        Row(name, sampling, distances, objective.costs(sampling), latency)
        for (name, sampling), distances, latency in zip_longest(samplings.items(), found, latencies)
    )


def _drawn_again(
    study: Study,
    objective: Objective,
    samplings: Sequence[SamplingConfig],
    seeds: Sequence[int],
    progress: Progress = silent,
) -> list[tuple[float, ...]]:
    """The distances of each config, one for each seed, which the study keeps."""
    done, found = count(1), list[tuple[float, ...]]()
    for sampling in samplings:
        names = {f"{key_of(sampling)} with seed {seed}": seed for seed in seeds}
        for name, seed in names.items():
            if name not in study.user_attrs:
                study.set_user_attr(name, objective.meter.measure(sampling, objective.rungs[-1], seed))
            progress(next(done), len(seeds) * len(samplings))
        found.append(tuple(study.user_attrs[name] for name in names))
    return found
