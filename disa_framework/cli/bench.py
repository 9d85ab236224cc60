"""`disa-bench`: shows where the time of drawing goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from disa_framework import measure
from disa_framework.cli.common import instantiate, make_module, make_parser, parse
from disa_framework.cli.drawing import add_drawing, load, requested, with_vae
from disa_framework.cli.printing import aligned

_BENCH = """Shows where the time of drawing goes, beside its floor: the same matrix products and attention calls alone.

examples:
  disa-bench --config digits/mar --ckpt_path last.ckpt
  disa-bench --config mar/base --random_weights true --batch_sizes '[1, 8]' --schedules '[Constant(50), Linear(50, 5)]'
  disa-bench --config mixture/default --schedules '[outputs/search/best.yaml, Constant(25)]'
  disa-bench --config digits/mar --random_weights true --compare digits/xar

All cases are timed in turn, in every round; shown are medians, with quartiles. "of peak" is the share of the
operations a second that the device does in a large product. The output folder then holds bench.json and bench.png.
Schedules, batch sizes and precision are those of all configurations; all else is each one's own.
"""


def bench(args: Sequence[str] | None = None) -> Path:
    """Times, and returns the folder of the results; see `disa-bench --help`."""
    asked = _read(args)
    named = {str(asked.config[-1]) if asked.config else "options": asked}
    named |= {name: _read(["--config", name]) for name in _several(asked.compare)}
    cases = [case for name, init in named.items() for case in _cases(asked, name, init)]
    timings, folder = measure.time_cases(cases, repeats=asked.repeats), Path(asked.output)
    weights = "random" if asked.random_weights else asked.ckpt_path
    about = {**measure.made_with(timings), "precision": str(asked.trainer.precision), "weights": weights}
    measure.save(folder, timings, about)
    print(*aligned(measure.table(timings)), sep="\n")
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "versions"))
    print(f"all: {folder / 'bench.json'}, {folder / 'bench.png'}")
    return folder


def _read(args: Sequence[str] | None) -> Namespace:
    parser = make_parser("disa-bench", _BENCH)
    add = parser.add_argument
    add("--schedules", type=list[str] | str | None, help="Side by side: sampling configs, or Linear(50, 5).")
    add("--batch_sizes", "--batch-sizes", type=list[PositiveInt], default=[8], help="Samples drawn together.")
    add("--compare", type=list[str] | str, default=[], help="Configurations to time beside this one, by path or name.")
    add("--repeats", type=PositiveInt, default=5, help="Timed rounds, after one that warms up.")
    add("--random_weights", type=bool, default=False, help="Do without: times hardly depend on them, images do.")
    add("--output", type=str, default="outputs/bench", help="Folder for the results.")
    add_drawing(parser)
    return instantiate(parser, with_vae(parser, parse(parser, args)))


def _several(value: list[str] | str) -> list[str]:
    """One, too, is a list. YAML parts `[Linear(50, 5)]` at the comma: what is not closed goes on with the next."""
    parts: list[str] = []
    for piece in [value] if isinstance(value, str) else value:
        unclosed = bool(parts) and parts[-1].count("(") > parts[-1].count(")")
        parts = [*parts[:-1], f"{parts[-1]}, {piece}"] if unclosed else [*parts, piece]
    return parts


def _cases(asked: Namespace, name: str, init: Namespace) -> list[measure.Case]:
    """Each schedule at each batch size, with one configuration, in the precision that was asked for."""
    if asked.random_weights and init.ckpt_path:
        raise ValueError("give either --ckpt_path or --random_weights true")
    module = make_module(init)
    schedules = None if asked.schedules is None else _several(asked.schedules)
    if not asked.random_weights:
        load(module.model, init)
    options = {**init.trainer, "precision": asked.trainer.precision or init.trainer.precision}
    context = measure.placed(module, measure.on_one_device(options))
    short = "/".join(Path(name).with_suffix("").parts[-2:])
    return [
        measure.Case(f"{short}, {how}", module.drawing(sampling), requested(init, module, count), count, context)
        for count in asked.batch_sizes
        for how, sampling in measure.variations(module.sampling, schedules).items()
    ]
