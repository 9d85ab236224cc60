"""`disa-diagnose`: shows why a schedule works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from pathlib import Path
from statistics import mean
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from disa_framework import diagnostics, page
from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.cli.drawing import add_drawing, load, requested, with_vae
from disa_framework.cli.report import aligned
from disa_framework.diagnostics import ABLATIONS, PARTS, Case, Diagnosis
from disa_framework.diagnostics.ablation import plot, save, table
from disa_framework.diagnostics.runs import Progress
from disa_framework.files import write_atomically
from disa_framework.models.base import Condition
from disa_framework.module import ARDiffusionModule
from disa_framework.page import picture
from disa_framework.schedules import Constant
from disa_framework.search.meter import Meter
from disa_framework.search.quality import Quality

_DIAGNOSE = """Shows why a step schedule works. Stage by stage: how well tokens are predicted from what the head is told
of them, their variance and entropy, how straight the way from noise is, the error of few steps, and time. Or, with
--ablation, what becomes of the images when one thing is varied, measured by --metric.

examples:
  disa-diagnose --config mixture/diagnose
  disa-diagnose --config digits/diagnose --ckpt_path last.ckpt --parts '[variance, straightness]'
  disa-diagnose --config mar/base --ckpt_path checkpoint-last.pth --num_samples 200 --batch_size 50 --stride 8
  disa-diagnose --config mixture/diagnose --ablation early_late
  disa-diagnose --config digits/diagnose --ckpt_path last.ckpt --ablation solvers --steps 25

The output folder then holds stages.csv (ABLATION.csv), a row a stage (a setting), stages.html, and its pictures as PNG.
The schedule is left aside: stages are compared at the same --steps. All is done by one process on one device.
"""


def diagnose(args: Sequence[str] | None = None) -> Path:
    """Measures, and returns the folder of the results; see `disa-diagnose --help`."""
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    init = instantiate(parser, config)
    init.schedule = Constant(config.steps)
    module, folder = make_module(init), Path(config.output)
    condition = requested(config, module, config.num_samples)
    load(module.model, config.ckpt_path)
    trainer = {**init.trainer, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    if config.ablation is None:
        _report_stages(folder, _diagnosis(config, module, condition, trainer))
    elif init.metric is None:
        raise ValueError("an ablation measures what is drawn: give --metric, as the configuration digits/diagnose does")
    else:
        _report_ablation(folder, config.ablation, _cases(config, module, init.metric, condition, trainer))
    return folder


def command() -> None:
    """The program `disa-diagnose`."""
    run("disa-diagnose", diagnose)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-diagnose", _DIAGNOSE)
    add = parser.add_argument
    add("--parts", type=list[str], default=list(PARTS), help="What to measure.")
    add("--ablation", choices=list(ABLATIONS), help="Vary this instead.")
    add("--num_samples", type=PositiveInt, default=1000, help="Samples drawn; of an ablation, with each setting.")
    add("--batch_size", type=PositiveInt, default=250, help="Samples drawn together; errors and times are one batch's.")
    add("--steps", type=PositiveInt, default=50, help="Steps at every stage; of an ablation, those that are many.")
    add("--menu", type=list[int], default=list(diagnostics.MENU), help="Numbers of steps that are few, rising.")
    add("--repeats", type=PositiveInt, default=8, help="Draws from what the head is told, for variance and entropy.")
    add("--stride", type=PositiveInt, default=1, help="Measure errors every so many stages.")
    add("--seeds", type=PositiveInt, default=3, help="Seeds of the noise of an ablation.")
    add("--output", type=str, default="outputs/diagnosis", help="Folder for the results.")
    parser.add_subclass_arguments(Quality, "metric", required=False, help="What an ablation measures.")
    add_drawing(parser, unused=("optimization", "schedule"))
    return parser


def _diagnosis(
    config: Namespace, module: ARDiffusionModule, condition: Condition, options: dict[str, Any]
) -> Diagnosis:
    meter = Meter(module, None, condition, config.batch_size, options)
    with _bar("diagnosis") as progress, meter.on_device():
        return diagnostics.diagnose(
            module, condition, parts=config.parts, batch_size=config.batch_size, steps=config.steps,
            repeats=config.repeats, menu=config.menu, stride=config.stride, progress=progress,
        )  # fmt: skip


def _cases(
    config: Namespace, module: ARDiffusionModule, metric: Quality, condition: Condition, options: dict[str, Any]
) -> list[Case]:
    meter = Meter(module, metric, condition, config.batch_size, options)
    with meter.lead(), _bar(config.ablation) as progress:
        return diagnostics.measure_ablation(
            meter, config.ablation, count=config.num_samples, steps=config.steps, menu=config.menu, seeds=config.seeds,
            progress=progress,
        )  # fmt: skip


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A progress bar for several counts, one after the other."""
    with tqdm(desc=name, delay=0.1) as bar:

        def show(done: int, total: int) -> None:
            if total != bar.total or done < bar.n:
                bar.reset(total)
            bar.update(done - bar.n)

        yield show


def _report_stages(folder: Path, diagnosis: Diagnosis) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    diagnosis.save(folder / "stages.csv")
    pictures = {part: picture(partial(diagnosis.plot, part)) for part in diagnosis.parts}
    _show(folder / "stages.html", "What each stage shows", diagnosis.table(), pictures)
    print(f"trend is the rank correlation with the stage; all: {folder / 'stages.csv'}, {folder / 'stages.html'}")


def _report_ablation(folder: Path, name: str, cases: Sequence[Case]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{name}.csv", cases)
    pictures = {name: picture(partial(plot, cases), height=1 + 0.3 * len(cases))}
    _show(folder / f"{name}.html", f"Ablation: {name}", table(cases), pictures)
    if name == "early_late":
        for few, ratios in diagnostics.asymmetry(cases).items():
            span = f"{min(ratios):.2f} … {max(ratios):.2f}"
            print(f"cut to {few} steps, early is {mean(ratios):.2f} ({span}) times as far off as late")
    print(f"all: {folder / f'{name}.csv'}, {folder / f'{name}.html'}")


def _show(path: Path, title: str, lines: list[list[str]], pictures: dict[str, bytes]) -> None:
    """Prints a table, and writes a page with it and the pictures, and each picture beside it as PNG."""
    for name, image in pictures.items():
        write_atomically(path.with_name(f"{name}.png"), image)
    page.write_page(path, title, [page.table(lines), *starmap(page.section, pictures.items())])
    print(*aligned(lines), sep="\n")
