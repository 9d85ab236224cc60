"""What a study found: the winner, a fair comparison, and a page with pictures.

Letters: `K` stages, `n` rows of the comparison.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from disa_framework.files import write_atomically
from disa_framework.schedules import Budget
from disa_framework.search.objective import Objective, filled
from disa_framework.search.space import Setting
from disa_framework.search.study import over_limit, ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TIMINGS, _SHAVED = 6, 0.99
_COLUMNS = ("number", "state", "distance", "images", "cost", "budget", "start", "error")


@dataclass(frozen=True)
class Row:
    """A setting, measured anew.

    Attributes:
        name: what it is called.
        setting: what was drawn with.
        cost: as predicted.
        latency: timed seconds per image, where costs are seconds.
        distances: one for each seed.
    """

    name: str
    setting: Setting
    cost: float
    latency: float | None
    distances: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.distances)

    @property
    def spread(self) -> float:
        """Standard deviation between seeds."""
        return statistics.stdev(self.distances) if len(self.distances) > 1 else 0.0


def choose(study: Study) -> FrozenTrial:
    """The best trial.

    Raises:
        ValueError: if none was drawn to its end.
    """
    if trials := ranked(study):
        return trials[0]
    errors = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
    raise ValueError(f"no trial was drawn to its end; {len(errors)} failed{f': {errors[0]}' if errors else ''}")


def meeting_the_limit(objective: Objective, setting: Setting) -> Setting:
    """The setting; where costs are seconds, with as many of its steps as meet the limit when it is timed.

    Raises:
        ValueError: if even far fewer steps take too long.
    """
    if objective.limit is None or objective.unit != "seconds":
        return setting
    aim, found = objective.limit, setting
    for _ in range(_TIMINGS):
        latency = objective.meter.latency(found)
        if latency <= objective.limit:
            return found
        aim *= _SHAVED * objective.limit / latency
        found = filled(setting, objective.costs, aim, objective.space.schedule.least)
    raise ValueError(
        f"the winner was to take {objective.limit:.6g} seconds per image, but with ever fewer steps it still takes "
        f"{latency:.6g} when it is timed: measure costs anew, or allow more"
    )


def candidates(study: Study, objective: Objective, best: FrozenTrial, setting: Setting) -> dict[str, Setting]:
    """What is worth comparing: the best trial with its setting, the best start of each family, the module as it is."""
    families: dict[str, str] = {}
    found = {}
    for trial in sorted(filter(_has_started, study.get_trials(deepcopy=False)), key=_standing):
        start = trial.user_attrs["start"]
        if families.setdefault(start.partition(" ")[0], start) == start:
            found[start] = objective.setting(trial)
    name = best.user_attrs.get("start")
    found.pop(name, None)
    return {f"winner ({name})" if name else "winner": setting, **found, "baseline": objective.base}


def _has_started(trial: FrozenTrial) -> bool:
    """Whether a trial is of a given schedule, and images were drawn with it."""
    drawn = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not over_limit(trial)
    return drawn and "start" in trial.user_attrs


def _standing(trial: FrozenTrial) -> tuple[bool, float]:
    """Whole trials first, the best first; of one that was stopped the last distance counts."""
    stopped = trial.state != TrialState.COMPLETE
    return stopped, trial.intermediate_values[max(trial.intermediate_values)] if stopped else trial.values[0]


def compare(study: Study, objective: Objective, settings: Mapping[str, Setting], seeds: int) -> list[Row]:
    """Measures settings with noise that no trial has seen; what the study has measured before is not drawn again.

    Args:
        seeds: how many.
    """
    first, count = objective.meter.module.seed + 1, objective.rungs[-1]

    def distance(setting: Setting, seed: int) -> float:
        name = f"{setting.key} with seed {seed}"
        if name not in study.user_attrs:
            study.set_user_attr(name, objective.meter.measure(setting, count, seed))
        return study.user_attrs[name]

    return [
        Row(
            name,
            setting,
            objective.costs(setting),
            _latency(objective, setting),
            tuple(distance(setting, seed) for seed in range(first, first + seeds)),
        )
        for name, setting in settings.items()
    ]


def _latency(objective: Objective, setting: Setting) -> float | None:
    return objective.meter.latency(setting) if objective.unit == "seconds" else None


def write_trials(path: Path, study: Study) -> None:
    """A table of all trials, as CSV."""
    trials = _begun(study)
    params = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *params])
    for trial in trials:
        attrs = trial.user_attrs
        writer.writerow([
            trial.number, state(trial), trial.values[0] if trial.values else "", trial.last_step or "",
            attrs.get("cost", ""), " ".join(map(str, attrs.get("budget", ()))), attrs.get("start", ""),
            attrs.get("error", ""), *(trial.params.get(name, "") for name in params),
        ])  # fmt: skip
    write_atomically(path, text.getvalue().encode())


def _begun(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def state(trial: FrozenTrial) -> str:
    """What became of a trial, in words."""
    if over_limit(trial):
        return "over the limit"
    if trial.state == TrialState.FAIL:
        return "failed" if "error" in trial.user_attrs else "killed"
    return {TrialState.COMPLETE: "whole", TrialState.PRUNED: "stopped early"}.get(trial.state, trial.state.name.lower())


def write_page(
    path: Path, study: Study, objective: Objective, rows: Sequence[Row], budgets: Mapping[str, Budget], title: str
) -> None:
    """A page in one file: the comparison, the Pareto front, budgets of the stages, importance of the parameters."""
    figures = [
        ("Distance and cost", _figure(lambda axes: _plot_front(axes, study, objective, rows))),
        ("Steps of each stage", _figure(lambda axes: _plot_budgets(axes, budgets))),
    ]
    if weights := importance(study):
        figures.append(("Importance of the parameters", _figure(lambda axes: _plot_importance(axes, weights))))
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(summary(study))}</p>"]
    if rows:
        cells = [[html.escape(cell) for cell in line] for line in table(rows, objective.unit)]
        body.append(f"<table>{''.join(_html_line(line, 'td' if i else 'th') for i, line in enumerate(cells))}</table>")
    if error := cost_error(rows):
        body.append(f"<p>Predicted and timed latency differ by {100 * error:.1f} % (median over the rows).</p>")
    body += [f'<h2>{name}</h2><img src="data:image/png;base64,{data}" alt="{name}">' for name, data in figures]
    page = f"<!DOCTYPE html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    write_atomically(path, "\n".join([page, *body, ""]).encode())


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
        budget = row.setting.budget
        spread = f" ± {row.spread:.2g}" if len(row.distances) > 1 else ""
        latency = [f"{row.latency:.4g}"] if row.latency is not None else []
        ends = f"{budget[0]} → {budget[-1]}"
        lines.append([row.name, str(sum(budget)), ends, f"{row.cost:.4g}", *latency, f"{row.mean:.4g}{spread}"])
    return lines


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


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of `(cost, distance)` that no other one beats in both, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, distance in sorted(points):
        if not kept or distance < kept[-1][1]:
            kept.append((cost, distance))
    return kept


_STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:56em}td,th{padding:.3em .8em;text-align:left}"
    "table{border-collapse:collapse}tr{border-bottom:1px solid #ccc}img{max-width:100%}"
)


def _html_line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _figure(draw: Callable[[Axes], None]) -> str:
    """A PNG in base64."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


def _plot_front(axes: Axes, study: Study, objective: Objective, rows: Sequence[Row]) -> None:
    whole = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    points = [(trial.user_attrs["cost"], trial.values[0]) for trial in whole]
    if points:
        axes.plot(*zip(*points, strict=True), ".", color="tab:gray", label="whole trials")
        axes.plot(*zip(*pareto(points), strict=True), drawstyle="steps-post", label="Pareto front")
    for row in rows:
        axes.errorbar(row.cost, row.mean, row.spread, fmt="o", capsize=3, label=f"{row.name}, other noise")
    if objective.limit is not None:
        axes.axvline(objective.limit, color="tab:red", linestyle=":", label="limit")
    axes.set(xlabel=f"cost ({objective.unit} per image)", ylabel="distance")
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
