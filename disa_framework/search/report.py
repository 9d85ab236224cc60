"""What a study found: a fair comparison of the winner with its rivals, and a page with pictures."""

from __future__ import annotations

import csv
import io
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, starmap, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from disa_framework import page
from disa_framework.files import write_atomically
from disa_framework.page import picture
from disa_framework.progress import Progress, silent
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Budget
from disa_framework.search.knapsack import undominated
from disa_framework.search.limits import shortened
from disa_framework.search.objective import Objective, sampling_of
from disa_framework.search.study import measured, over_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 4.5  # of pictures, in inches
_COLUMNS = ("number", "state", "distance", "samples", "cost", "budget", "start", "steps_of", "error")


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
    stopped = trial.state != TrialState.COMPLETE
    return stopped, trial.intermediate_values[max(trial.intermediate_values)] if stopped else trial.values[0]


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
    rows, first = list[Row](), objective.meter.module.seed + 1
    for place, ((name, sampling), latency) in enumerate(zip_longest(samplings.items(), latencies)):
        distances = []
        for i in range(seeds):
            distances.append(measured(study, objective, sampling, first + i))
            progress(place * seeds + i + 1, seeds * len(samplings))
        rows.append(Row(name, sampling, tuple(distances), objective.costs(sampling), latency))
    return tuple(rows)


def write_trials(path: Path, study: Study) -> None:
    """A table of all trials, as CSV."""
    trials = _begun(study)
    params = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *params])
    for trial in trials:
        attrs = trial.user_attrs
        budget = " ".join(map(str, sampling_of(trial).budget)) if "sampling" in attrs else ""
        writer.writerow([
            trial.number, state(trial), trial.values[0] if trial.values else "", trial.last_step or "",
            attrs.get("cost", ""), budget, attrs.get("start", ""), attrs.get("steps_of", ""), attrs.get("error", ""),
            *(trial.params.get(name, "") for name in params),
        ])  # fmt: skip
    write_atomically(path, text.getvalue().encode())


def _begun(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def state(trial: FrozenTrial) -> str:
    """What became of a trial, in words."""
    if over_limit(trial):
        return "over the limit"
    if trial.state == TrialState.FAIL:
        return "failed" if "error" in trial.user_attrs else "lost"
    return {TrialState.COMPLETE: "whole", TrialState.PRUNED: "stopped early"}.get(trial.state, trial.state.name.lower())


def line(trial: FrozenTrial) -> str:
    """What became of a trial, in a line."""
    attrs = trial.user_attrs
    found = f"distance {trial.values[0]:.4g}" if trial.values else attrs.get("error", "")
    cost = f"cost {attrs['cost']:.4g}" if "cost" in attrs else ""
    origin = f"steps of {attrs['steps_of']}" if "steps_of" in attrs else attrs.get("start", "")
    return "  ".join(filter(None, [f"{trial.number:4}", f"{state(trial):14}", cost, found, origin]))


def summary(study: Study) -> str:
    """How many trials ended how."""
    states = [state(trial) for trial in _begun(study)]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    return f"{len(states)} trials: {counts}"


def table(rows: Sequence[Row], unit: str) -> list[list[str]]:
    """The comparison as text, with a line of headings."""
    timed = any(row.latency is not None for row in rows)
    lines = [["schedule", "steps", "first → last", f"cost ({unit})", *(["timed"] if timed else []), "distance"]]
    for row in rows:
        latency = [f"{row.latency:.4g}"] if row.latency is not None else []
        lines.append([row.name, str(sum(row.sampling.budget)), row.ends, f"{row.cost:.4g}", *latency, row.distance])
    return lines


def kept_quality(rows: Sequence[Row], times: float) -> str:
    """Whether the first row's distance is at most so many times the last one's, in words."""
    found, baseline = rows[0], rows[-1]
    share = found.mean / baseline.mean - 1
    kept = "as was asked" if share <= times - 1 else "more than was asked: other noise says otherwise than the trials"
    return (
        f"its distance is {abs(share):.1%} {'above' if share > 0 else 'below'} the baseline's, {kept}; "
        f"it costs {found.cost / baseline.cost:.3g} of it"
    )


def cost_error(rows: Sequence[Row]) -> float | None:
    """Median relative difference of predicted and timed latency."""
    errors = [abs(row.cost - row.latency) / row.latency for row in rows if row.latency]
    return statistics.median(errors) if errors else None


def importance(study: Study) -> dict[str, float]:
    """Share of each parameter in what makes trials differ; nothing where there are too few trials to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that small values are taken for good ones
        try:
            return get_param_importances(study, target=lambda trial: trial.values[0])
        except (RuntimeError, ValueError):
            return {}


def write_page(
    path: Path,
    study: Study,
    objective: Objective,
    rows: Sequence[Row],
    budgets: Mapping[str, Budget],
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """A page in one file: the comparison, the Pareto front, budgets of the stages, the trials, importance of the
    parameters."""
    pictures = {
        "Distance and cost": picture(lambda axes: _plot_front(axes, study, objective, rows), _HEIGHT),
        "Steps of each stage": picture(lambda axes: _plot_budgets(axes, budgets), _HEIGHT),
    }
    if not objective.pareto:
        pictures["Distance of each trial"] = picture(lambda axes: _plot_trials(axes, study), _HEIGHT)
    if weights := importance(study):
        pictures["Importance of the parameters"] = picture(lambda axes: _plot_importance(axes, weights), _HEIGHT)
    body = [page.paragraph(text) for text in (summary(study), *notes)]
    if rows:
        body.append(page.table(table(rows, objective.costs.unit)))
    if error := cost_error(rows):
        off = f"Predicted and timed latency differ by {100 * error:.1f} % (median over the rows)."
        body.append(page.paragraph(off))
    page.write_page(path, title, [*body, *starmap(page.section, pictures.items())])


def _plot_front(axes: Axes, study: Study, objective: Objective, rows: Sequence[Row]) -> None:
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    points = [(trial.user_attrs["cost"], trial.values[0]) for trial in whole]
    if points:
        axes.plot(*zip(*points, strict=True), ".", color="tab:gray", label="whole trials")
        axes.plot(*zip(*undominated(points), strict=True), drawstyle="steps-post", label="Pareto front")
    for row in rows:
        axes.errorbar(row.cost, row.mean, row.spread, fmt="o", capsize=3, label=f"{row.name}, other noise")
    if objective.limit is not None:
        axes.axvline(objective.limit, color="tab:red", linestyle=":", label="limit")
    axes.set(xlabel=f"cost ({objective.costs.unit} per sample)", ylabel="distance")
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize="small")  # within it would hide points


def _plot_trials(axes: Axes, study: Study) -> None:
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    numbers, distances = [trial.number for trial in whole], [trial.values[0] for trial in whole]
    axes.plot(numbers, distances, "o", label="whole trials")
    axes.plot(numbers, [*accumulate(distances, min)], drawstyle="steps-post", color="tab:gray", label="best")
    axes.set(xlabel="trial", ylabel="distance")
    axes.legend(loc="upper right", fontsize="small")


def _plot_budgets(axes: Axes, budgets: Mapping[str, Budget]) -> None:
    for name, budget in budgets.items():
        axes.step(range(len(budget)), budget, where="mid", label=name)
    axes.set(xlabel="stage", ylabel="diffusion steps", ylim=(0, None))
    axes.legend(loc="upper right", fontsize="small")


def _plot_importance(axes: Axes, weights: Mapping[str, float]) -> None:
    names = list(weights)[::-1]
    axes.barh(names, [weights[name] for name in names])
    axes.set(xlabel="share")
