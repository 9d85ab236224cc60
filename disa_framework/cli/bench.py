"""`disa-bench`: shows where the time of drawing goes."""

from __future__ import annotations

import ast
import json
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning import Trainer

from disa_framework import bench
from disa_framework.bench import Case
from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.cli.drawing import add_drawing, load, requested, with_vae
from disa_framework.cli.precision import settle_precision
from disa_framework.cli.report import aligned
from disa_framework.devices import name_of
from disa_framework.files import write_atomically
from disa_framework.module import ARDiffusionModule
from disa_framework.page import picture
from disa_framework.schedules import PerStage, StepSchedule, load_schedule

_BENCH = """Shows where the time of drawing goes: backbone, head, decoder and the rest, beside the floor, which is the
time of the same matrix products and attention calls alone.

examples:
  disa-bench --config digits/mar --ckpt_path last.ckpt
  disa-bench --config mar/base --random_weights true --batch_sizes '[1, 8]' --schedules '[Constant(50), Linear(50, 5)]'
  disa-bench --config mixture/default --schedules '[outputs/search/best_schedule.yaml, Constant(25)]'
  disa-bench --config digits/mar --random_weights true --compare digits/xar

All cases are timed in turn, in every round; shown are medians, with quartiles. The output folder then holds bench.json
and bench.png. Schedules, batch sizes and --precision are those of all configurations; all else is each one's own.
"""
_VERSIONS = {"torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()}


def benchmark(args: Sequence[str] | None = None) -> Path:
    """Times, and returns the folder of the results; see `disa-bench --help`."""
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    schedules = [*map(_schedule, _several(config.schedules)), *map(PerStage, config.budgets)]
    first = str(config.config[-1]) if config.config else "options"
    named = [(first, config)]
    named += [(name, _beside(parser, name, config)) for name in _several(config.compare)]
    cases = [case for name, own in named for case in _cases(parser, config, _short(name), own, schedules)]
    timings = bench.measure(cases, repeats=config.repeats)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    made = _made(config, cases[0])
    content = {**made, "cases": bench.figures(timings)}
    write_atomically(folder / "bench.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(folder / "bench.png", picture(partial(bench.plot, timings), height=1.5 + 0.5 * len(timings)))
    print(*aligned(bench.table(timings)), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in made.items() if name != "versions"))
    print(f"all: {folder / 'bench.json'}, {folder / 'bench.png'}")
    return folder


def command() -> None:
    """The program `disa-bench`."""
    run("disa-bench", benchmark)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-bench", _BENCH)
    add = parser.add_argument
    add("--schedules", type=list[str] | str, default=[], help="Schedules side by side: files, or Linear(50, 5).")
    add("--budgets", type=list[list[int]], default=[], help="More of them: the steps of each stage.")
    add("--batch_sizes", "--batch-sizes", type=list[PositiveInt], default=[8], help="Images drawn together.")
    add("--compare", type=list[str] | str, default=[], help="Configurations to time beside this one, by path or name.")
    add("--repeats", type=PositiveInt, default=5, help="Timed rounds, after one that warms up.")
    add("--random_weights", type=bool, default=False, help="Do without: times hardly depend on them, images do.")
    add("--output", type=str, default="outputs/bench", help="Folder for the results.")
    add_drawing(parser)
    return parser


def _short(name: str) -> str:
    """Of a configuration that was given by name or path: `digits/mar`."""
    path = Path(name)
    return f"{path.parent.name}/{path.stem}".lstrip("/")


def _beside(parser: ArgumentParser, name: str, first: Namespace) -> Namespace:
    """Another configuration, in the precision that was asked for."""
    config = with_vae(parser, parser.parse_args(["--config", name]))
    if first.precision is None:
        settle_precision(config, parser.prog)
    else:
        config.trainer.precision = first.trainer.precision
    return config


def _several(value: list[str] | str) -> list[str]:
    """One, too, is a list. YAML parts `[Linear(50, 5)]` at the comma: what is not closed goes on with the next."""
    parts: list[str] = []
    for piece in [value] if isinstance(value, str) else value:
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += f", {piece}"
        else:
            parts.append(piece)
    return parts


def _schedule(text: str) -> StepSchedule:
    """A schedule from its file, or from what it prints: `Linear(50, 5)`."""
    if text.endswith((".yaml", ".yml")):
        return load_schedule(text)
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        module, _, name = ast.unparse(call.func).rpartition(".")
        kind = getattr(import_module(module or "disa_framework.schedules"), name)
        schedule = kind(
            *map(ast.literal_eval, call.args), **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        )
        assert isinstance(schedule, StepSchedule)
    except (AssertionError, AttributeError, ImportError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"no schedule {text!r}: give a file (.yaml), or a class with its arguments, as Linear(50, 5). {error}"
        ) from error
    return schedule


def _cases(
    parser: ArgumentParser, asked: Namespace, name: str, config: Namespace, schedules: Sequence[StepSchedule]
) -> list[Case]:
    """Each schedule at each batch size, with one configuration."""
    init = instantiate(parser, config)
    modules = [make_module(init)]
    if schedules:
        modules = [make_module(Namespace({**vars(init), "schedule": schedule})) for schedule in schedules]
    if not asked.random_weights:
        load(modules[0].model, config.ckpt_path)
    elif config.ckpt_path:
        raise ValueError("give either --ckpt_path or --random_weights true")
    precision = _place(modules, init.trainer)
    cases = []
    for batch_size in asked.batch_sizes:
        condition = requested(config, modules[0], batch_size)
        for module in modules:
            module.evaluations()
            cases.append(Case(f"{name}, {module.schedule}", module, condition, batch_size, precision))
    return cases


def _place(modules: Sequence[ARDiffusionModule], options: Any) -> Any:
    """Brings modules to where they draw, in their precision, and returns what makes the context to call them in."""
    single = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": []}
    trainer = Trainer(**{**options, **single, **quiet})
    plugin = trainer.precision_plugin
    for module in modules:
        plugin.convert_module(module).to(trainer.strategy.root_device)

    def context() -> AbstractContextManager[object]:
        return plugin.predict_step_context()

    return context


def _made(config: Namespace, case: Case) -> dict[str, Any]:
    """What the times were taken with."""
    device = case.device
    return {
        "device": name_of(device),
        "dtype": str(case.module.model.dtype).removeprefix("torch."),
        "precision": str(config.trainer.precision),
        "threads": torch.get_num_threads(),
        "rounds": config.repeats,
        "weights": "random" if config.random_weights else config.ckpt_path,
        "versions": _VERSIONS,
    }
