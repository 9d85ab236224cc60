"""`disa-search`: finds how to draw best within a limit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Literal

import optuna
import torch.distributed as dist
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import SecretStr
from tqdm import tqdm

from disa_framework.cli.common import instantiate, make_module, make_parser, parse
from disa_framework.cli.drawing import add_drawing, load, requested, with_vae
from disa_framework.cli.printing import aligned, progress_bar
from disa_framework.metrics.quality import Quality
from disa_framework.sampling.config import SamplingConfig
from disa_framework.search import Found, Limit, Plan, find
from disa_framework.search.report import table
from disa_framework.toy import exact  # noqa: F401  so that its distance is known by name

_SEARCH = """Finds how to draw the best images within a limit. The methods:

  study      an Optuna study of images drawn and measured; it begins with hand-made ramps and what the next ones find
  pareto     the same for all costs at once
  fit        fits a solver of a few steps to the head, and finds its best budget as the next one does; no images
  calibrate  measures how far few steps at each stage shift what is drawn, and solves for the best budget; no images
  learn      learns steps from that same profile by gradient, heeding in which direction each stage shifts
  adapt      a schedule that decides its steps while drawing, with the threshold that meets the limit

examples:
  disa-search --config digits/search --ckpt_path last.ckpt --latency 0.05
  disa-search --config digits/search --ckpt_path last.ckpt --evaluations 96 --storage postgresql://host/studies
  disa-search --config digits/search --ckpt_path last.ckpt --quality 0.02 --unit evaluations
  disa-search --config digits/search --ckpt_path last.ckpt --method pareto --unit evaluations
  disa-search --config digits/search --ckpt_path last.ckpt --method fit --evaluations 40
  disa-search --config digits/search --ckpt_path last.ckpt --method calibrate --speedup 2.5
  disa-search --config mixture/search --evaluations 440 --space.temperature '[1, 1.15]'

--schedule is the baseline that --speedup refers to. The output folder then holds best.yaml, to draw with (disa-predict
--sampling best.yaml); of a study report.html and trials.csv, too. A Pareto front is in front/00.yaml and so on, with
costs as predicted; else a limit in seconds is met on the clock.

A study chooses what --space names (--space.help); without it all that the model has: steps, stages, their sizes, order,
solver, temperature, guided stages, caching.

Without a limit nothing is tried: the front that calibration predicts is printed and kept in front/, and what a study
would draw.

A study that was stopped goes on where it was when it is started again; start the command twice, and two workers share
it. optuna-dashboard shows what is in the storage.
"""


def search(args: Sequence[str] | None = None) -> Found:
    """Finds how to draw, and prints it; see `disa-search --help`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    limit = _limit(config)
    if config.method not in ("study", "pareto"):
        config.metric = None  # nor its network and its reference
    init = instantiate(parser, config)
    module, plan = make_module(init), _plan(init)
    condition = requested(init, module, max(plan.rungs, default=0))
    load(module.model, init)
    with _told():
        found = find(module, limit, condition, init.metric, plan, init.output, progress_bar)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(*_lines(found), sep="\n")
    return found


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-search", _SEARCH)
    add = parser.add_argument
    add("--latency", type=float | None, help="Limit: seconds per image, on this device with this batch size.")
    add("--speedup", type=float | None, help="Limit: so many times as fast as the baseline.")
    add("--evaluations", type=int | None, help="Limit: head evaluations per image.")
    add(
        "--quality",
        type=float | None,
        help="Or the cheapest whose distance is at most this share above the baseline's.",
    )
    units = "Of costs, where the limit does not say it: of --speedup, --quality and fronts."
    add("--unit", type=Literal["seconds", "evaluations"], default="seconds", help=units)
    add("--starts", type=list[str], default=[], help="Sampling configs to begin with, besides the hand-made ramps.")
    add(
        "--storage", type=SecretStr | None, help="SQLite file or database URL (default: study.db in the output folder)."
    )
    add("--output", type=str, default="outputs/search", help="Folder for the results.")
    parser.add_subclass_arguments(Quality, "metric", required=False, help="What is made small, where there are trials.")
    parser.add_class_arguments(Plan, skip={"starts", "storage", "trainer"}, sub_configs=True)
    add_drawing(parser)
    return parser


def _limit(config: Namespace) -> Limit:
    given = [name for name in ("latency", "speedup", "evaluations", "quality") if config[name] is not None]
    if len(given) > 1:
        raise ValueError(f"give one limit, not {' and '.join(f'--{name}' for name in given)}")
    if config.speedup is not None:
        return Limit.speedup(config.speedup, config.unit)
    if config.quality is not None:
        return Limit.quality(config.quality, config.unit)
    if config.latency is not None:
        return Limit.seconds(config.latency)
    return Limit(config.unit) if config.evaluations is None else Limit.evaluations(config.evaluations)


def _plan(init: Namespace) -> Plan:
    # Pictures show names, in which files may have what is no text.
    starts = {os.fsencode(path).decode(errors="replace"): SamplingConfig.load(path) for path in init.starts}
    given = {field.name: init[field.name] for field in fields(Plan) if field.name in init}
    storage = None if init.storage is None else init.storage.get_secret_value()
    if not isinstance(storage, str | None):
        raise ValueError("--storage must be a text: the path of a file, or a URL")
    return Plan(**{**given, "starts": starts, "storage": storage})


def _lines(found: Found) -> Iterator[str]:
    """What was found, for people."""
    if found.timed is not None:
        yield str(found.timed)
    for place, point in enumerate(found.front):
        where = f"{found.folder}/front/{place:02}.yaml"
        drawn = point.sampling.schedule if point.distance is None else f"distance {point.distance:.4g}"
        yield f"{where}: {drawn} at {point.cost:.4g} {found.unit} per image"
    if found.rows:
        yield from aligned(table(found.rows, found.unit))
    if found.folder is not None and not found.front:
        yield f"{found.sampling.schedule}: {found.folder}/best.yaml"
    yield from found.notes


@contextmanager
def _told() -> Iterator[None]:
    """What a search tells about itself, in lines above its progress bars."""
    logger, lines = logging.getLogger("disa_framework"), logging.Handler()
    lines.emit = lambda record: tqdm.write(record.getMessage())  # type: ignore[method-assign]
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)
