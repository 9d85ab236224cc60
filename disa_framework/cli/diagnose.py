"""`disa-diagnose`: shows why a schedule works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from disa_framework import diagnostics, measure
from disa_framework.cli.common import instantiate, make_module, make_parser, parse
from disa_framework.cli.drawing import add_drawing, load, requested, with_vae
from disa_framework.cli.printing import aligned, progress_bar
from disa_framework.metrics.quality import Quality
from disa_framework.search.meter import Meter

_DIAGNOSE = """Shows why a step schedule works. Stage by stage: how well tokens are predicted from what the head is told
of them, their variance and entropy, how straight the way from noise is, the error of few steps, and time. Or, with
--ablation, what becomes of the samples when one thing is varied, measured by --metric.

examples:
  disa-diagnose --config mixture/diagnose
  disa-diagnose --config digits/diagnose --ckpt_path last.ckpt --parts '[variance, straightness]'
  disa-diagnose --config mar/base --ckpt_path checkpoint-last.pth --num_samples 200 --batch_size 50 --stride 8
  disa-diagnose --config mixture/diagnose --ablation early_late
  disa-diagnose --config digits/diagnose --ckpt_path last.ckpt --ablation solvers --steps 25

The output folder then holds stages.csv (ABLATION.csv), a row a stage (a variation), stages.html, and its pictures as
PNG. The schedule is left aside: stages are compared at the same --steps. All is done by one process on one device.
"""


def diagnose(args: Sequence[str] | None = None) -> Path:
    """Measures, and returns the folder of the results; see `disa-diagnose --help`."""
    parser = _make_parser()
    init = instantiate(parser, with_vae(parser, parse(parser, args)))
    if init.ablation and init.metric is None:
        raise ValueError("an ablation measures what is drawn: give --metric, as the configuration digits/diagnose does")
    init.schedule = None
    module, folder = make_module(init), Path(init.output)
    condition = requested(init, module, init.num_samples)
    load(module.model, init)
    options = {**init.trainer, **measure.ONE_DEVICE}
    meter = Meter(module, init.metric if init.ablation else None, condition, init.batch_size, options)
    found: diagnostics.Ablation | diagnostics.Diagnosis
    if init.ablation:
        with progress_bar(init.ablation) as bar:
            found = diagnostics.ablate(meter, init.ablation, init.num_samples, init.steps, init.menu, init.seeds, bar)
    else:
        menu, count, together = tuple(init.menu), init.num_samples, init.batch_size
        probe = diagnostics.Probe(init.steps, init.repeats, menu, init.stride, count, together)
        with meter.on_device(), progress_bar("diagnosis") as bar:
            found = diagnostics.diagnose(module, condition, init.parts, probe, bar)
    page = found.save(folder)
    print(*aligned(found.table()), *found.notes, f"all: {page.with_suffix('.csv')}, {page}", sep="\n")
    return folder


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-diagnose", _DIAGNOSE)
    add = parser.add_argument
    add("--parts", type=list[str], default=list(diagnostics.PARTS), help="What to measure.")
    add("--ablation", choices=list(diagnostics.ABLATIONS), help="Vary this instead.")
    add("--num_samples", type=PositiveInt, default=1000, help="Samples drawn; of an ablation, with each variation.")
    add("--batch_size", type=PositiveInt, default=250, help="Samples drawn together; errors and times are one batch's.")
    add("--steps", type=PositiveInt, default=50, help="Steps at every stage; of an ablation, those that are many.")
    add("--menu", type=list[int], default=list(diagnostics.MENU), help="Numbers of steps that are few, rising.")
    add("--repeats", type=PositiveInt, default=8, help="Draws from what the head is told, for variance and entropy.")
    add("--stride", type=PositiveInt, default=1, help="Measure errors every so many stages.")
    add("--seeds", type=PositiveInt, default=3, help="Seeds of the noise of an ablation.")
    add("--output", type=str, default="outputs/diagnosis", help="Folder for the results.")
    parser.add_subclass_arguments(Quality, "metric", required=False, help="What an ablation measures.")
    add_drawing(parser, unused=["schedule"])
    return parser
