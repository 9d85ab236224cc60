"""The methods of `disa-search`: what each does with a task, and what it leaves in the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from optuna import Study
from optuna.trial import FrozenTrial
from torch import Tensor
from tqdm import tqdm

from disa_framework.cli.report import aligned
from disa_framework.data import cycled
from disa_framework.files import write_atomically
from disa_framework.models.base import Condition
from disa_framework.schedules import Constant, PerStage, StepSchedule, load_schedule
from disa_framework.search.adaptation import fit_adaptive
from disa_framework.search.calibration import Profile, measure_profile
from disa_framework.search.knapsack import best_within
from disa_framework.search.learning import learn
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs, Objective, shortened
from disa_framework.search.report import (
    candidates,
    compare,
    state,
    summary,
    table,
    write_page,
    write_trials,
)  # fmt: skip
from disa_framework.search.space import Setting, Space
from disa_framework.search.study import (
    AGAIN,
    Start,
    busy,
    check_drawn,
    choose,
    counted,
    fitted_constants,
    fitted_ramps,
    ranked,
)  # fmt: skip
from disa_framework.search.study import search as run_study
from disa_framework.search.timing import Timed, meeting_the_limit

_DECIDES_TRIALS = (
    "model", "tokenizer", "schedule", "solver", "guidance", "num_stages", "cache", "seed", "labels", "metric", "space",
    "precision", "rungs", "batch_size", "method", "latency", "speedup", "evaluations", "unit",
)  # fmt: skip
_DECIDES_PROFILE = (
    "model", "weights", "precision", "prompts", "labels", "rungs", "solver", "guidance", "num_stages", "seed",
    "profile_samples", "profile_menu", "profile_stride",
)  # fmt: skip
_CELLS = 10_000  # of the knapsack's axis of costs
_FRONT = 4  # limits between the cheapest schedule and the baseline, at which a Pareto study begins


@dataclass(frozen=True)
class Task:
    """What the methods work on.

    Attributes:
        config: all options.
        meter: draws and measures.
        costs: of settings, in the unit of the limit.
        limit: on costs, if there is one.
        space: what is chosen.
        settings: those options that decide what is found.
        folder: for the results.
    """

    config: Namespace
    meter: Meter
    costs: Costs
    limit: float | None
    space: Space
    settings: dict[str, Any]
    folder: Path


def _study(task: Task) -> None:
    """The best schedule within a limit."""
    limit = _given(task.limit)
    objective = Objective(task.meter, task.costs, task.space, limit, task.config.rungs)
    objective.check()
    starts: dict[str, Start] = {
        **_given_starts(task),
        **_profiled_starts(task, limit),
        **fitted_ramps(task.costs, objective.base, limit),
        **fitted_constants(task.costs, objective.base, limit, task.space.num_stages),
    }
    study = _run_study(task, objective, starts)
    if others := busy(study):
        return print(f"{others} trials are still being drawn by other workers: the last one writes the report")
    finalists, seeds = min(task.config.finalists, len(ranked(study))), task.config.seeds
    with tqdm(total=AGAIN * finalists, unit="draw", desc="finalists", disable=finalists < 2) as bar:
        best = choose(study, objective, finalists, bar.update)
    chosen = objective.setting(best)
    compared = candidates(study, objective, best, chosen)

    least = min(task.space.schedule.least, *chosen.budget)  # starts may have fewer than the space
    winner, *rivals = compared
    within = partial(shortened, chosen, task.costs, least=least)
    timed = _timed(task, within, [compared[name] for name in rivals])
    if timed and timed.setting != chosen:
        compared = {f"{winner}, shortened": timed.setting, **{name: compared[name] for name in rivals}}
    _write(task, next(iter(compared.values())), "best_schedule", "best_config")
    with tqdm(total=seeds * len(compared), unit="draw", desc="comparison") as bar:
        rows = compare(study, objective, compared, timed.latencies if timed else (), seeds, bar.update)
    budgets = {row.name: row.setting.budget for row in rows}
    title = f"Step schedules within {timed.limit if timed else limit:.4g} {task.costs.unit} per image"
    notes = [f"Of the winner: {timed}. The others keep the steps that were predicted to fit."] if timed else []
    write_page(task.folder / "report.html", study, objective, rows, budgets, title, notes)
    print(*aligned(table(rows, task.costs.unit)), sep="\n")
    print(f"{summary(study)}; winner: {task.folder / 'best_schedule.yaml'}, more: {task.folder / 'report.html'}")


def _pareto(task: Task) -> None:
    """The best schedule for every cost."""
    objective = Objective(task.meter, task.costs, task.space, task.limit, task.config.rungs, pareto=True)
    objective.check()
    starts = _given_starts(task)
    highest = task.limit or task.costs(objective.base)
    lowest = min(map(task.costs, task.space.cheapest(objective.base)))
    for i in range(_FRONT):
        limit = lowest * (highest / lowest) ** ((i + 1) / _FRONT)
        ramps = fitted_ramps(task.costs, objective.base, limit, falls=(10.0,))
        found = {**ramps, **_profiled_starts(task, limit)}
        starts |= {f"{name} at {limit:.3g}": start for name, start in found.items()}
    study = _run_study(task, objective, starts)
    if others := busy(study):
        return print(f"{others} trials are still being drawn by other workers: the last one writes the report")
    check_drawn(study)
    by_setting = {trial.user_attrs["setting"]: trial for trial in study.best_trials}  # some are drawn several times
    front = sorted(by_setting.values(), key=lambda trial: trial.values[1])
    budgets = {}
    for earlier in (*task.folder.glob("front/*.yaml"), *task.folder.glob("configs/*.yaml")):
        earlier.unlink()  # the front may have become shorter
    for place, trial in enumerate(front):
        setting, (distance, cost) = objective.setting(trial), trial.values
        path = _write(task, setting, f"front/{place:02}", f"configs/{place:02}")
        budgets[f"{cost:.4g}"] = setting.budget
        print(f"{path}: distance {distance:.4g} at {cost:.4g} {objective.costs.unit} per image")
    write_page(task.folder / "report.html", study, objective, [], budgets, "Pareto front of step schedules")
    print(f"{summary(study)}; more: {task.folder / 'report.html'}")


def _calibrated(task: Task, limit: float, base: Setting) -> StepSchedule:
    """The schedule that shifts what is drawn least, by the sizes of each stage's shifts."""
    cost, profile = task.costs.model(base), _profile(task, base, limit).every_step()
    resolution = 1.0 if cost.unit == "evaluations" else max((limit - cost.fixed) / _CELLS, 1e-9)
    front = profile.front(cost.stage_costs(profile.menu), cost.fixed, resolution=resolution)
    return PerStage(best_within(front, limit).budget)


def _learned(task: Task, limit: float, base: Setting) -> StepSchedule:
    """The schedule that shifts what is drawn least, by what all stages' shifts add up to."""
    cost, profile = task.costs.model(base), _profile(task, base, limit)
    costs = cost.stage_costs(profile.every_step().menu)
    return learn(profile, limit - cost.fixed, costs, seed=task.config.seed, progress_bar=True)


def _adapted(task: Task, limit: float, base: Setting) -> StepSchedule:
    """The adaptive schedule that spends the limit on a batch."""
    config = task.config
    with task.meter.on_device():
        return fit_adaptive(
            task.meter.module.model, _asked(task, config.batch_size), limit=limit, solver=base.solver,
            cost=task.costs.model(base), signal=config.signal, guidance=base.guidance, cache=base.cache,
            num_stages=base.num_stages, batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip


def _profiled_starts(task: Task, limit: float) -> dict[str, Start]:
    """What is found without images for all numbers of stages, by name, where that is asked for and to be had."""
    base = Setting.of(task.meter.module)
    starts: dict[str, Start] = {}
    for count in dict.fromkeys((base.num_stages, *task.space.num_stages)) if task.config.calibrate else ():
        setting, stages = replace(base, num_stages=count), f" ({count} stages)" if count != base.num_stages else ""
        for name, find in {"Calibrated": _calibrated, "Learned": _learned}.items():
            try:
                starts[f"{name}{stages}"] = replace(setting, schedule=find(task, limit, setting))
            except ValueError as error:  # the limit is below the menu, or grids have no such number of steps
                print(f"beginning without a {name.lower()} schedule{stages}: {error}")
    return starts


def _find(task: Task) -> None:
    """A schedule that is found without images."""
    base = Setting.of(task.meter.module)

    def within(limit: float) -> Setting:
        return replace(base, schedule=WITHOUT_TRIALS[task.config.method](task, limit, base))

    timed = _timed(task, within, [base])
    setting = timed.setting if timed else within(_given(task.limit))
    print(f"{setting.schedule}: {_write(task, setting, 'best_schedule', 'best_config')}")


def _timed(task: Task, within: Callable[[float], Setting], rivals: Sequence[Setting]) -> Timed | None:
    """What is found within the limit on the clock, and says so; `None` where the limit is not in seconds."""
    if task.costs.unit != "seconds":
        return None
    timed = meeting_the_limit(task.meter, task.costs, within, _given(task.limit), rivals, task.config.speedup)
    print(timed)
    return timed


def _given(limit: float | None) -> float:
    if limit is None:
        raise ValueError("give a limit: --latency, --speedup or --evaluations")
    return limit


def _asked(task: Task, count: int) -> Condition | None:
    """What some of the samples are asked to be, of all classes or prompts alike."""
    condition = task.meter.condition
    if condition is None:
        return None
    order = torch.randperm(len(condition), generator=torch.Generator().manual_seed(task.config.seed))
    return cycled(condition[order] if isinstance(condition, Tensor) else [condition[i] for i in order.tolist()], count)


def _profile(task: Task, base: Setting, limit: float) -> Profile:
    """What each stage's steps are worth, measured once for a number of stages.

    Raises:
        ValueError: if nothing on the menu meets the limit, so that there is nothing to measure.
    """
    config, stages = task.config, base.num_stages
    cheapest = task.costs(replace(base, schedule=Constant(min(config.profile_menu))))
    if cheapest > limit:
        raise ValueError(f"no budget costs at most {limit:.6g}: the cheapest feasible cost is {cheapest:.6g}")
    settings = {**task.settings, "num_stages": stages}
    decides = json.dumps([settings[name] for name in _DECIDES_PROFILE])
    path = task.folder / f"profile-{hashlib.sha256(decides.encode()).hexdigest()[:8]}.safetensors"
    if path.exists():
        return Profile.load(path)
    with tqdm(total=stages, unit="stage", desc=f"calibration, {stages} stages") as bar, task.meter.on_device():
        profile = measure_profile(
            task.meter.module.model, _asked(task, config.profile_samples), solver=base.solver,
            guidance=base.guidance, num_stages=stages, menu=config.profile_menu, batch_size=config.profile_samples,
            stride=config.profile_stride, seed=config.seed,
            progress=lambda done, _: bar.update(done - bar.n) and None,
        )  # fmt: skip
    profile.save(path)
    return profile


def _given_starts(task: Task) -> dict[str, Start]:
    """Of files; a budget decides its number of stages."""
    base = Setting.of(task.meter.module)
    starts: dict[str, Start] = {}
    for path in task.config.starts:
        schedule = load_schedule(path)
        if schedule.reads_signals:
            raise ValueError(f"{path} decides its steps while it draws: a study begins with fixed ones")
        stages = len(schedule.arguments["steps"]) if isinstance(schedule, PerStage) else base.num_stages
        if stages not in (base.num_stages, *task.space.num_stages):
            raise ValueError(f"{path} has steps for {stages} stages: allow them with --space.num_stages '[{stages}]'")
        starts[f"{path} (given)"] = replace(base, schedule=schedule, num_stages=stages)
    return starts


def _run_study(task: Task, objective: Objective, starts: Mapping[str, Start]) -> Study:
    config = task.config
    storage = config.storage or str(task.folder / "study.log")
    settings = {name: task.settings[name] for name in (*_DECIDES_TRIALS, "weights", "prompts")}
    if 2 * len(starts) > config.trials:
        print(f"{len(starts)} of {config.trials} trials are what it begins with: more --trials search further")
    with tqdm(total=config.trials, unit="trial") as bar:

        def show(study: Study, trial: FrozenTrial) -> None:
            bar.n = len(counted(study))
            bar.write(_line(study, trial))
            write_trials(task.folder / "trials.csv", study)

        study = run_study(
            objective,
            config.trials,
            starts=starts,
            storage=storage,
            name=config.study_name,
            settings=settings,
            seed=config.seed,
            callbacks=[show],
        )
    write_trials(task.folder / "trials.csv", study)
    return study


def _line(study: Study, trial: FrozenTrial) -> str:
    """What became of a trial."""
    attrs = trial.user_attrs
    found = f"distance {trial.values[0]:.4g}" if trial.values else attrs.get("error", "")
    cost = f"cost {attrs['cost']:.4g}" if "cost" in attrs else ""
    origin = f"steps of {attrs['steps_of']}" if "steps_of" in attrs else attrs.get("start", "")
    return "  ".join(filter(None, [f"{trial.number:4}", f"{state(trial):14}", cost, found, origin]))


def _write(task: Task, setting: Setting, schedule: str, config: str) -> Path:
    """Writes a schedule, whose file is returned, and a configuration with all that was chosen."""
    path, whole = (task.folder / f"{name}.yaml" for name in (schedule, config))
    for file in (path, whole):
        file.parent.mkdir(exist_ok=True)
    setting.schedule.save(path)
    chosen: dict[str, Any] = {"schedule": yaml.safe_load(path.read_text())}
    if task.space.num_stages:
        chosen["num_stages"] = setting.num_stages
    if setting.cache != task.meter.module.cache:
        chosen["cache"] = asdict(setting.cache) if setting.cache else None
    if task.space.guidance:
        chosen["guidance"] = {"scale": setting.guidance.scale}
    if task.space.solvers or task.space.temperature:
        chosen["solver"] = _written(setting.solver)
    write_atomically(whole, yaml.safe_dump(chosen, sort_keys=False).encode())
    return path


def _written(part: Any) -> Any:
    """A solver or a part of one, as configurations have it."""
    if not is_dataclass(part):
        return part
    options = {field.name: _written(getattr(part, field.name)) for field in fields(part)}
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": options}


WITHOUT_TRIALS: dict[str, Callable[[Task, float, Setting], StepSchedule]] = {
    "calibrate": _calibrated,
    "learn": _learned,
    "adapt": _adapted,
}
METHODS: dict[str, Callable[[Task], None]] = {
    "study": _study,
    "pareto": _pareto,
    **dict.fromkeys(WITHOUT_TRIALS, _find),
}
