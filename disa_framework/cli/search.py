"""`disa-search`: finds the best step schedule within a limit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.cli.drawing import add_drawing, load, requested, settings_of, with_vae
from disa_framework.cli.search_methods import METHODS, WITHOUT_TRIALS, Task
from disa_framework.data import cycled, read_prompts
from disa_framework.devices import name_of
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, TwoStage
from disa_framework.schedules.adaptive import Signal
from disa_framework.search.calibration import MENU
from disa_framework.search.cost import CostModel, analytic_cost, held_out_error, measure_cost, median_error
from disa_framework.search.meter import Meter
from disa_framework.search.objective import RUNGS, Costs
from disa_framework.search.quality import Quality
from disa_framework.search.space import Setting, Space

_SEARCH = """Finds the step schedule that draws the best images within a limit. The methods:

  study      an Optuna study of images drawn and measured; it begins with hand-made ramps and what the next two find
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
(disa-predict --schedule best_schedule.yaml), and best_config.yaml with all that was chosen (disa-predict --config ...
--config best_config.yaml); of a study report.html and trials.csv, too. Of a Pareto front, the schedules are in front,
all that was chosen in configs, and costs as predicted; else a limit in seconds is met on the clock.

A study that was stopped goes on where it was when it is started again; start the command twice, and two workers share
it. optuna-dashboard shows what is in the storage.
"""
_DECIDES_COST = (
    "model", "tokenizer", "prompts", "guidance", "attention", "compile", "graphs", "batch_size", "trainer",
)  # fmt: skip
_HELD_OUT = (Constant(10), Linear(30, 5), TwoStage(40, 4))
_REPEATS = 3  # timed runs of each of them


def search(args: Sequence[str] | None = None) -> Path:
    """Finds a schedule, and returns the folder of the results; see `disa-search --help`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    unit = _unit(config)
    if config.method in WITHOUT_TRIALS:
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
            METHODS[config.method](Task(config, meter, costs, limit, init.space, settings, folder))
    return folder


def command() -> None:
    """The program `disa-search`."""
    run("disa-search", search)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-search", _SEARCH)
    add = parser.add_argument
    add("--method", choices=list(METHODS), default="study", help="How the schedule is found, see above.")
    add("--calibrate", type=bool, default=True, help="Begin a study with calibrated and learned schedules, too.")
    add("--signal", choices=list(get_args(Signal)), default="error", help="Adaptive schedule: what it goes by.")
    add("--profile_samples", type=PositiveInt, default=500, help="Calibration: samples drawn together.")
    add("--profile_menu", type=list[int], default=list(MENU), help="Calibration: step counts to choose from.")
    add("--profile_stride", type=PositiveInt, default=1, help="Calibration: measure every so many stages.")
    add("--latency", type=float | None, help="Limit: seconds per image, on this device with this batch size.")
    add("--speedup", type=float | None, help="Limit: so many times as fast as the baseline.")
    add("--evaluations", type=int | None, help="Limit: head evaluations per image.")
    add("--unit", type=Literal["seconds", "evaluations"], default="seconds", help="Of --speedup and of Pareto fronts.")
    add("--trials", type=PositiveInt, default=40, help="Trials in all, of all workers and all runs.")
    add("--rungs", type=list[int], default=list(RUNGS), help="Numbers of images after which poor trials are stopped.")
    add("--batch_size", type=PositiveInt, default=64, help="Images drawn together.")
    add("--seeds", type=PositiveInt, default=3, help="Seeds of the final comparison, none of which the study used.")
    add("--finalists", type=PositiveInt, default=5, help="Best trials that are drawn twice more before one is chosen.")
    add("--starts", type=list[str], default=[], help="Files of schedules to begin with, besides the hand-made ramps.")
    add("--storage", type=str | None, help="Journal file or database URL (default: study.log in the output folder).")
    add("--study_name", type=str, default="disa", help="Name of the study within the storage.")
    add("--output", type=str, default="outputs/search", help="Folder for the results.")
    parser.add_subclass_arguments(Quality, "metric", required=False, help="What is made small, where there are trials.")
    parser.add_class_arguments(Space, "space", sub_configs=True)
    parser.set_defaults({"space.schedule": {"class_path": "disa_framework.search.space.Knots"}})
    add_drawing(parser)
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
        if module.schedule.reads_signals:
            raise ValueError("--speedup is over a baseline of fixed steps: give another --schedule, or --latency")
        return costs(Setting.of(module)) / config.speedup
    return config.latency if config.latency is not None else config.evaluations


def _stopwatch(meter: Meter, folder: Path, settings: dict[str, Any]) -> Callable[[ARDiffusionModule], CostModel]:
    """Makes cost models by timing, and keeps them in files."""
    decides = json.dumps([settings[name] for name in _DECIDES_COST])

    def measure(module: ARDiffusionModule) -> CostModel:
        with meter.on_device():
            device = f"{name_of(module.model.device)} {torch.get_num_threads()}"
        details = f"{decides} {device} {module.num_stages} {module.guidance.active} {module.cache}"
        path = folder / f"cost-{hashlib.sha256(details.encode()).hexdigest()[:8]}.json"
        if not path.exists():
            asked = None if meter.condition is None else cycled(meter.condition, meter.batch_size)
            held_out = [schedule.budget(module.num_stages) for schedule in _HELD_OUT]
            with meter.on_device():
                model = measure_cost(module, asked, meter.batch_size)
                error = median_error(held_out_error(model, module, asked, held_out, repeats=_REPEATS))
            if not path.exists():  # or another worker, begun at the same time, was faster: both take its times
                model.save(path)
            stages = f" of {module.num_stages} stages"
            print(f"predicted times{stages} are {error:.1%} off, in the median over budgets they were not fitted to")
        return CostModel.load(path, module)

    return measure


def _settings(parser: ArgumentParser, config: Namespace, model: ARDiffusionModel) -> dict[str, Any]:
    """All options, with weights and prompts by what they are."""
    prompts = read_prompts(config.prompts) if config.prompts else []
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    return {**settings_of(parser, config, model), "prompts": digest}
