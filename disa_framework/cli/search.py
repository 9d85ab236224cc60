"""`disa-search`: finds the best step schedule within a limit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
import torch
import yaml
from jsonargparse import SUPPRESS, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from optuna import Study
from optuna.trial import FrozenTrial
from torch import Tensor
from tqdm import tqdm

from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.cli.drawing import digest_of, load, requested, with_vae
from disa_framework.cli.precision import add_precision
from disa_framework.cli.report import aligned
from disa_framework.data import read_prompts
from disa_framework.files import write_atomically
from disa_framework.models import ARDiffusionModel
from disa_framework.models.base import Condition
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule, TwoStage, load_schedule
from disa_framework.schedules.adaptive import Signal
from disa_framework.search.adaptation import fit_adaptive
from disa_framework.search.calibration import MENU, Profile, measure_profile
from disa_framework.search.cost import CostModel, analytic_cost, held_out_error, measure_cost, median_error
from disa_framework.search.knapsack import best_within
from disa_framework.search.learning import learn
from disa_framework.search.meter import Meter
from disa_framework.search.objective import RUNGS, Costs, Objective
from disa_framework.search.quality import Quality
from disa_framework.search.report import (
    candidates,
    choose,
    compare,
    meeting_the_limit,
    state,
    summary,
    table,
    write_page,
    write_trials,
)  # fmt: skip
from disa_framework.search.space import Setting, Space
from disa_framework.search.study import busy, counted, fitted_ramps
from disa_framework.search.study import search as run_study

_SEARCH = """Finds the step schedule that draws the best images within a limit. The methods:

  study      an Optuna study of images drawn and measured; it begins with hand-made ramps and the calibrated schedule
  pareto     the same for all costs at once
  calibrate  measures how far few steps at each stage shift what is drawn, and solves for the best budget; no images
  learn      learns steps from that same profile by gradient, heeding in which direction each stage shifts
  adapt      a schedule that decides its steps while drawing, with the threshold that meets the limit

examples:
  disa-search --config digits/search --ckpt_path last.ckpt --latency 0.05
  disa-search --config digits/search --ckpt_path last.ckpt --speedup 2.5 --trials 100
  disa-search --config digits/search --ckpt_path last.ckpt --evaluations 96 --storage sqlite:///study.db
  disa-search --config digits/search --ckpt_path last.ckpt --method pareto --unit evaluations
  disa-search --config digits/search --ckpt_path last.ckpt --method calibrate --speedup 2.5
  disa-search --config mixture/search --evaluations 440 --space.temperature '[1, 1.15]'

--schedule is the baseline that --speedup refers to. The output folder then holds best_schedule.yaml, to draw with
(disa-predict --schedule best_schedule.yaml), best_config.yaml with all that was chosen (disa-predict --config ...
--config best_config.yaml), report.html and trials.csv. A study that was stopped goes on where it was when it is
started again; start the command twice, and two workers share it. optuna-dashboard shows what is in the storage.
"""
_DECIDES_TRIALS = (
    "model", "tokenizer", "schedule", "solver", "guidance", "num_stages", "cache", "seed", "labels", "metric", "space",
    "precision", "rungs", "batch_size", "method", "latency", "speedup", "evaluations", "unit",
)  # fmt: skip
_DECIDES_COST = ("model", "tokenizer", "guidance", "attention", "batch_size", "trainer")
_DECIDES_PROFILE = (
    "model", "weights", "precision", "prompts", "labels", "rungs", "solver", "guidance", "num_stages", "seed",
    "profile_samples", "profile_menu", "profile_stride",
)  # fmt: skip
_CELLS = 10_000  # of the knapsack's axis of costs
_HELD_OUT = (Constant(10), Linear(30, 5), TwoStage(40, 4))
_REPEATS = 3  # timed runs of each of them
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


def search(args: Sequence[str] | None = None) -> Path:
    """Finds a schedule, and returns the folder of the results; see `disa-search --help`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    unit = _unit(config)
    if config.method in _WITHOUT_TRIALS:
        config.metric = None  # nor its network and its reference
    elif config.metric is None:
        raise ValueError(f"--method {config.method} measures images: give --metric, as the configuration does")
    init = instantiate(parser, config)
    module, folder = make_module(init), Path(config.output)
    condition = requested(config, module, max(config.rungs, default=0))
    module.evaluations()
    load(module.model, config.ckpt_path)
    meter = Meter(module, init.metric, condition, config.batch_size, init.trainer)
    with meter.lead() as leads:
        if leads:
            folder.mkdir(parents=True, exist_ok=True)
            settings = _settings(parser, config, module.model)
            costs = Costs(module, analytic_cost if unit == "evaluations" else _stopwatch(meter, folder, settings))
            limit = _limit(config, costs, module)
            _METHODS[config.method](Task(config, meter, costs, limit, init.space, settings, folder))
    return folder


def command() -> None:
    """The program `disa-search`."""
    run("disa-search", search)


def _study(task: Task) -> None:
    """The best schedule within a limit."""
    limit = _given(task.limit)
    objective = Objective(task.meter, task.costs, task.space, limit, task.config.rungs)
    objective.check()
    starts = _given_starts(task) | _calibrated_start(task, limit) | fitted_ramps(task.costs, objective.base, limit)
    study = _run_study(task, objective, starts)
    if others := busy(study):
        return print(f"{others} trials are still being drawn by other workers: the last one writes the report")
    best = choose(study)
    setting = meeting_the_limit(objective, objective.setting(best))
    _write_best(task, setting)
    rows = compare(study, objective, candidates(study, objective, best, setting), task.config.seeds)
    budgets = {row.name: row.setting.budget for row in rows}
    title = f"Step schedules within {limit:.4g} {objective.unit} per image"
    write_page(task.folder / "report.html", study, objective, rows, budgets, title)
    print(*aligned(table(rows, objective.unit)), sep="\n")
    print(f"{summary(study)}; winner: {task.folder / 'best_schedule.yaml'}, more: {task.folder / 'report.html'}")


def _pareto(task: Task) -> None:
    """The best schedule for every cost."""
    objective = Objective(task.meter, task.costs, task.space, task.limit, task.config.rungs, pareto=True)
    starts = _given_starts(task)
    highest = task.limit or task.costs(objective.base)
    lowest = min(map(task.costs, task.space.cheapest(objective.base)))
    for i in range(_FRONT):
        limit = lowest * (highest / lowest) ** ((i + 1) / _FRONT)
        ramps = fitted_ramps(task.costs, objective.base, limit, falls=(10.0,))
        ramps |= _calibrated_start(task, limit)
        starts |= {f"{name} at {limit:.3g}": schedule for name, schedule in ramps.items()}
    study = _run_study(task, objective, starts)
    if others := busy(study):
        return print(f"{others} trials are still being drawn by other workers: the last one writes the report")
    front = sorted(study.best_trials, key=lambda trial: trial.values[1])
    if not front:
        choose(study)  # says why
    budgets = {}
    for place, trial in enumerate(front):
        setting, (distance, cost) = objective.setting(trial), trial.values
        path = task.folder / f"front/{place:02}.yaml"
        path.parent.mkdir(exist_ok=True)
        setting.schedule.save(path)
        budgets[f"{cost:.4g}"] = setting.budget
        print(f"{path}: distance {distance:.4g} at {cost:.4g} {objective.unit} per image")
    write_page(task.folder / "report.html", study, objective, [], budgets, "Pareto front of step schedules")
    print(f"{summary(study)}; more: {task.folder / 'report.html'}")


def _calibrated(task: Task, limit: float) -> StepSchedule:
    """The schedule that shifts what is drawn least, by the sizes of each stage's shifts."""
    cost, profile = task.costs.model(Setting.of(task.meter.module)), _profile(task).every_step()
    resolution = 1.0 if cost.unit == "evaluations" else max((limit - cost.fixed) / _CELLS, 1e-9)
    front = profile.front(cost.stage_costs(profile.menu), cost.fixed, resolution=resolution)
    return PerStage(best_within(front, limit).budget)


def _calibrated_start(task: Task, limit: float) -> dict[str, StepSchedule]:
    """The calibrated schedule by its name, where one is asked for and to be had."""
    if not task.config.calibrate:
        return {}
    try:
        return {"Calibrated": _calibrated(task, limit)}
    except ValueError as error:  # the limit is below the menu, or grids have no such number of steps
        print(f"beginning without a calibrated schedule: {error}")
        return {}


def _learned(task: Task, limit: float) -> StepSchedule:
    """The schedule that shifts what is drawn least, by what all stages' shifts add up to."""
    cost, profile = task.costs.model(Setting.of(task.meter.module)), _profile(task)
    costs = cost.stage_costs(profile.every_step().menu)
    return learn(profile, limit - cost.fixed, costs, seed=task.config.seed, progress_bar=True)


def _adapted(task: Task, limit: float) -> StepSchedule:
    """The adaptive schedule that spends the limit on a batch."""
    module, config = task.meter.module, task.config
    with task.meter.on_device():
        return fit_adaptive(
            module.model, _asked(task, config.batch_size), limit=limit, solver=module.solver,
            cost=task.costs.model(Setting.of(module)), signal=config.signal, guidance=module.guidance,
            num_stages=module.num_stages, batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip


def _find(task: Task) -> None:
    """A schedule that is found without images."""
    schedule = _WITHOUT_TRIALS[task.config.method](task, _given(task.limit))
    _write_best(task, replace(Setting.of(task.meter.module), schedule=schedule))
    print(f"{schedule}: {task.folder / 'best_schedule.yaml'}")


def _given(limit: float | None) -> float:
    if limit is None:
        raise ValueError("give a limit: --latency, --speedup or --evaluations")
    return limit


def _asked(task: Task, count: int) -> Condition | None:
    """What some of the samples are asked to be, of all classes or prompts alike."""
    condition = task.meter.condition
    if condition is None:
        return None
    order = torch.randperm(len(condition), generator=torch.Generator().manual_seed(task.config.seed))[:count]
    return condition[order] if isinstance(condition, Tensor) else [condition[i] for i in order.tolist()]


def _profile(task: Task) -> Profile:
    """What each stage's steps are worth, measured once."""
    module, config = task.meter.module, task.config
    decides = json.dumps([task.settings[name] for name in _DECIDES_PROFILE])
    path = task.folder / f"profile-{hashlib.sha256(decides.encode()).hexdigest()[:8]}.safetensors"
    if path.exists():
        return Profile.load(path)
    with tqdm(total=module.num_stages, unit="stage", desc="calibration") as bar, task.meter.on_device():
        profile = measure_profile(
            module.model, _asked(task, config.profile_samples), solver=module.solver, guidance=module.guidance,
            num_stages=module.num_stages,
            menu=config.profile_menu, batch_size=config.profile_samples, stride=config.profile_stride, seed=config.seed,
            progress=lambda done, _: bar.update(done - bar.n) and None,
        )  # fmt: skip
    profile.save(path)
    return profile


_WITHOUT_TRIALS: dict[str, Callable[[Task, float], StepSchedule]] = {
    "calibrate": _calibrated,
    "learn": _learned,
    "adapt": _adapted,
}
_METHODS: dict[str, Callable[[Task], None]] = {
    "study": _study,
    "pareto": _pareto,
    **dict.fromkeys(_WITHOUT_TRIALS, _find),
}


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-search", _SEARCH)
    add = parser.add_argument
    add("--method", choices=list(_METHODS), default="study", help="How the schedule is found, see above.")
    add("--calibrate", type=bool, default=True, help="Begin a study with the calibrated schedule, too.")
    add("--signal", choices=list(get_args(Signal)), default="error", help="Adaptive schedule: what it goes by.")
    add("--profile_samples", type=PositiveInt, default=500, help="Calibration: samples drawn together.")
    add("--profile_menu", type=list[int], default=list(MENU), help="Calibration: step counts to choose from.")
    add("--profile_stride", type=PositiveInt, default=1, help="Calibration: measure every so many stages.")
    add("--latency", type=float | None, help="Limit: seconds per image, on this device with this batch size.")
    add("--speedup", type=float | None, help="Limit: so many times as fast as the baseline.")
    add("--evaluations", type=int | None, help="Limit: head evaluations per image.")
    add("--unit", type=Literal["seconds", "evaluations"], default="seconds", help="Of --speedup and of Pareto fronts.")
    add("--ckpt_path", "--checkpoint", type=str | None, help="Weights: .ckpt, .pth, .safetensors, or a folder of them.")
    add("--vae", type=str | None, help="Weights of the autoencoder, which turns latents into images.")
    add("--trials", type=PositiveInt, default=40, help="Trials in all, of all workers and all runs.")
    add("--rungs", type=list[int], default=list(RUNGS), help="Numbers of images after which poor trials are stopped.")
    add("--batch_size", type=PositiveInt, default=64, help="Images drawn together.")
    add("--seeds", type=PositiveInt, default=3, help="Seeds of the final comparison, none of which the study used.")
    add("--starts", type=list[str], default=[], help="Files of schedules to begin with, besides the hand-made ramps.")
    add_precision(parser)
    add("--labels", type=list[int] | None, help="Classes to draw in turn (default: all).")
    add("--prompts", type=str | None, help="File of prompts: text, one a line, or GenEval's metadata (.jsonl).")
    add("--storage", type=str | None, help="Journal file or database URL (default: study.log in the output folder).")
    add("--study_name", type=str, default="disa", help="Name of the study within the storage.")
    add("--output", type=str, default="outputs/search", help="Folder for the results.")
    parser.add_subclass_arguments(Quality, "metric", required=False, help="What is made small, where there are trials.")
    parser.add_class_arguments(Space, "space", sub_configs=True)
    parser.add_class_arguments(ARDiffusionModule, skip={"optimization"}, sub_configs=True)
    for section in ("data", "optimization"):  # disa-fit's part of a configuration that both read
        add(f"--{section}", type=dict[str, Any] | None, help=SUPPRESS)
    return parser


def _unit(config: Namespace) -> str:
    """In which costs are."""
    limits = [name for name in ("latency", "speedup", "evaluations") if config[name] is not None]
    if len(limits) > 1:
        raise ValueError(f"give one limit, not {' and '.join(f'--{name}' for name in limits)}")
    if wrong := [name for name in limits if not config[name] > 0]:
        raise ValueError(f"--{wrong[0]} must be above 0, got {config[wrong[0]]}")
    return {"latency": "seconds", "evaluations": "evaluations"}.get("".join(limits), config.unit)


def _limit(config: Namespace, costs: Costs, module: ARDiffusionModule) -> float | None:
    """Greatest cost of an image."""
    if config.speedup is not None:
        return costs(Setting.of(module)) / config.speedup
    return config.latency if config.latency is not None else config.evaluations


def _stopwatch(meter: Meter, folder: Path, settings: dict[str, Any]) -> Callable[[ARDiffusionModule], CostModel]:
    """Makes cost models by timing, and keeps them in files."""
    decides = json.dumps([settings[name] for name in _DECIDES_COST])

    def measure(module: ARDiffusionModule) -> CostModel:
        details = f"{decides} {module.num_stages} {module.guidance.active} {module.cache}"
        path = folder / f"cost-{hashlib.sha256(details.encode()).hexdigest()[:8]}.json"
        if not path.exists():
            asked = None if meter.condition is None else meter.condition[: meter.batch_size]
            held_out = [schedule.budget(module.num_stages) for schedule in _HELD_OUT]
            with meter.on_device():
                model = measure_cost(module, asked, meter.batch_size)
                error = median_error(held_out_error(model, module, asked, held_out, repeats=_REPEATS))
            model.save(path)
            print(f"predicted times are {error:.1%} off, in the median over budgets they were not fitted to")
        return CostModel.load(path, module)

    return measure


def _given_starts(task: Task) -> dict[str, StepSchedule]:
    starts = {f"{Path(path).stem} (given)": load_schedule(path) for path in task.config.starts}
    if adaptive := [name for name, schedule in starts.items() if schedule.reads_signals]:
        raise ValueError(f"{adaptive[0]} decides its steps while it draws: a study begins with fixed ones")
    return starts


def _run_study(task: Task, objective: Objective, starts: dict[str, StepSchedule]) -> Study:
    config = task.config
    storage = config.storage or str(task.folder / "study.log")
    settings = {name: task.settings[name] for name in (*_DECIDES_TRIALS, "weights", "prompts")}
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
    return "  ".join(filter(None, [f"{trial.number:4}", f"{state(trial):14}", cost, found, attrs.get("start", "")]))


def _write_best(task: Task, setting: Setting) -> None:
    """The schedule, and a configuration with all that was chosen."""
    schedule = task.folder / "best_schedule.yaml"
    setting.schedule.save(schedule)
    chosen: dict[str, Any] = {"schedule": yaml.safe_load(schedule.read_text())}
    if task.space.num_stages:
        chosen["num_stages"] = setting.num_stages
    if setting.cache != task.meter.module.cache:
        chosen["cache"] = asdict(setting.cache) if setting.cache else None
    if task.space.guidance:
        chosen["guidance"] = {"scale": setting.guidance.scale}
    if task.space.solvers or task.space.temperature:
        chosen["solver"] = _written(setting.solver)
    write_atomically(task.folder / "best_config.yaml", yaml.safe_dump(chosen, sort_keys=False).encode())


def _written(part: Any) -> Any:
    """A solver or a part of one, as configurations have it."""
    if not is_dataclass(part):
        return part
    options = {field.name: _written(getattr(part, field.name)) for field in fields(part)}
    return {"class_path": f"{type(part).__module__}.{type(part).__qualname__}", "init_args": options}


def _settings(parser: ArgumentParser, config: Namespace, model: ARDiffusionModel) -> dict[str, Any]:
    """All options, with weights and prompts by what they are, wherever they come from."""
    whole = json.loads(parser.dump(config, format="json", skip_unset=False))
    prompts = read_prompts(config.prompts) if config.prompts else []
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    precision = whole["trainer"]["precision"]
    return {**whole, "precision": precision, "weights": digest_of(model.state_dict()), "prompts": digest}
