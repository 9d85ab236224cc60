"""What a study found, for people: lines, tables, and a page with pictures."""

from __future__ import annotations

import csv
import io
import statistics
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, starmap
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from disa_framework import page
from disa_framework.files import write_atomically
from disa_framework.page import picture
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search.finalists import Row
from disa_framework.search.knapsack import undominated
from disa_framework.search.objective import Objective, distance_of, over_limit, sampling_of
from disa_framework.search.study import ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 4.5  # of pictures, in inches
_COLUMNS = ("number", "state", "distance", "samples", "cost", "budget", "start", "steps_of", "picture", "error")


def write_trials(path: Path, study: Study) -> None:
    """A table of all trials, as CSV."""
    trials = _begun(study)
    params = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *params])
    for trial in trials:
        attrs = trial.user_attrs
        distance = distance_of(trial)
        budget = " ".join(map(str, sampling_of(trial).budget)) if "sampling" in attrs else ""
        writer.writerow([
            trial.number, state(trial), "" if distance is None else distance, trial.last_step or "",
            attrs.get("cost", ""), budget, *(attrs.get(name, "") for name in ("start", "steps_of", "picture", "error")),
            *(trial.params.get(name, "") for name in params),
        ])  # fmt: skip
    write_atomically(path, text.getvalue().encode())


def _distance(trial: FrozenTrial) -> float:
    """Of a whole trial."""
    distance = distance_of(trial)
    assert distance is not None
    return distance


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
    distance = distance_of(trial)
    found = attrs.get("error", "") if distance is None else f"distance {distance:.4g}"
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
            return get_param_importances(study, target=_distance)
        except (RuntimeError, ValueError):
            return {}


def write_page(
    path: Path,
    study: Study,
    objective: Objective,
    title: str,
    samplings: Mapping[str, SamplingConfig],
    rows: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> None:
    """A page in one file: the comparison, the Pareto front, budgets of the stages, the trials, importance of the
    parameters, and what the first and the last config draw from the same noise."""
    pictures = {
        "Distance and cost": picture(lambda axes: _plot_front(axes, study, objective, rows), _HEIGHT),
        "Steps of each stage": picture(lambda axes: _plot_budgets(axes, samplings), _HEIGHT),
    }
    if not objective.pareto:
        made_small = "distance" if objective.worse is None else "cost"
        pictures["The trials"] = picture(lambda axes: _plot_trials(axes, study, made_small), _HEIGHT)
    if weights := importance(study):
        pictures["Importance of the parameters"] = picture(lambda axes: _plot_importance(axes, weights), _HEIGHT)
    names = [*samplings]
    for name in dict.fromkeys((names[0], names[-1])):
        if drawn := objective.meter.picture(samplings[name]):
            pictures[f"Drawn with {name}"] = drawn
    body = [page.paragraph(text) for text in (summary(study), *notes)]
    if rows:
        body.append(page.table(table(rows, objective.costs.unit)))
    if error := cost_error(rows):
        off = f"Predicted and timed latency differ by {100 * error:.1f} % (median over the rows)."
        body.append(page.paragraph(off))
    page.write_page(path, title, [*body, *starmap(page.section, pictures.items())])


def _plot_front(axes: Axes, study: Study, objective: Objective, rows: Sequence[Row]) -> None:
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    points = [(trial.user_attrs["cost"], _distance(trial)) for trial in whole]
    if points:
        axes.plot(*zip(*points, strict=True), ".", color="tab:gray", label="whole trials")
        axes.plot(*zip(*undominated(points), strict=True), drawstyle="steps-post", label="Pareto front")
    for row in rows:
        axes.errorbar(row.cost, row.mean, row.spread, fmt="o", capsize=3, label=f"{row.name}, other noise")
    if objective.limit is not None:
        axes.axvline(objective.limit, color="tab:red", linestyle=":", label="limit")
    axes.set(xlabel=f"cost ({objective.costs.unit} per sample)", ylabel="distance")
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize="small")  # within it would hide points


def _plot_trials(axes: Axes, study: Study, made_small: str) -> None:
    within = sorted(ranked(study), key=lambda trial: trial.number)
    numbers, values = [trial.number for trial in within], [trial.values[0] for trial in within]
    axes.plot(numbers, values, "o", label="whole trials within the limits")
    axes.plot(numbers, [*accumulate(values, min)], drawstyle="steps-post", color="tab:gray", label="best")
    axes.set(xlabel="trial", ylabel=made_small)
    axes.legend(loc="upper right", fontsize="small")


def _plot_budgets(axes: Axes, samplings: Mapping[str, SamplingConfig]) -> None:
    for name, sampling in samplings.items():
        axes.step(range(sampling.stages), sampling.budget, where="mid", label=name)
    axes.set(xlabel="stage", ylabel="diffusion steps", ylim=(0, None))
    axes.legend(loc="upper right", fontsize="small")


def _plot_importance(axes: Axes, weights: Mapping[str, float]) -> None:
    names = list(weights)[::-1]
    axes.barh(names, [weights[name] for name in names])
    axes.set(xlabel="share")
