"""`disa-predict`: draws samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from disa_framework.callbacks import SampleFolder, SampleWriter
from disa_framework.cli.common import instantiate, make_module, make_parser, parse
from disa_framework.cli.drawing import add_drawing, load, reader, with_vae
from disa_framework.cli.printing import show_figures
from disa_framework.files import check_writable
from disa_framework.metrics.evaluation import Comparison
from disa_framework.prediction import Drawn, draw, measure

_PREDICT = """Draws images with an autoregressive image generator with a diffusion head.

examples:
  disa-predict --config digits/mar --ckpt_path last.ckpt --num_images 100 --output drawn --grid true
  disa-predict --config digits/mar --ckpt_path last.ckpt --schedule Linear --schedule.early 10 --schedule.late 2
  disa-predict --config digits/mar --ckpt_path last.ckpt --solver DDIM --guidance.scale 2 --labels '[3, 7]'
  disa-predict --config digits/mar --ckpt_path last.ckpt --sampling outputs/digits-search/best.yaml
  disa-predict --config mar/base --ckpt_path checkpoint-last.pth --vae kl16.ckpt --each 50 --format npz
  disa-predict --config mar/base --ckpt_path checkpoint-last.pth --vae kl16.ckpt --each 50 --format none \\
      --evaluate.reference adm_in256_stats.npz --evaluate.inception weights-inception-2015-12-05-6726825d.pth
  disa-predict --config harmon/1_5b --ckpt_path harmon_1.5b.pth --vae kl16.ckpt --prompts prompts.txt

A run that was stopped goes on where it was when it is started again, unless it keeps no images (--format none).
"""
_GRID = 100
_NOTHING = "none"  # to keep


def predict(args: Sequence[str] | None = None) -> SampleFolder:
    """Draws samples into a folder and returns it; see `disa-predict --help`."""
    parser = _make_parser()
    init = instantiate(parser, with_vae(parser, parse(parser, args)))
    _check(init)
    module, asked = make_module(init), reader(init, init.each)
    condition = asked.read(module.model)
    module.model.check_condition(condition)
    count = asked.count(condition, init.num_images)
    folder = SampleFolder(init.output, asked.prompts, init.writer)
    load(module.model, init)
    how: dict[str, Any] = {"batch_size": init.batch_size, "trainer": init.trainer}
    if init.format == _NOTHING:
        output = folder.path / "evaluation.json"
        check_writable(output)
        if figures := measure(module, init.evaluate, condition, count, **how):  # none on other processes
            show_figures(figures, output)
    elif drawn := draw(module, folder, condition, count, form=init.format, facts={"asked": str(asked)}, **how):
        _say(drawn, module.sampling.schedule.adapts, init.grid)
    return folder


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-predict", _PREDICT)
    add = parser.add_argument
    add("--num_images", type=int | None, help="How many samples to draw (default: 64, or what the condition asks for).")
    add("--each", type=PositiveInt | None, help="How many of each class, class after class, or of each prompt (4).")
    add("--batch_size", type=PositiveInt, default=64, help="Samples drawn together.")
    add("--output", type=str, default="outputs/samples", help="Folder for the samples.")
    form = "What to keep of images: PNG files (default), samples.npz as ADM reads it, both, or none."
    add("--format", type=Literal["png", "npz", "both", "none"] | None, help=form)
    add("--grid", type=bool, default=False, help="Also write grid.png, the first 100 images.")
    parser.add_subclass_arguments(SampleWriter, "writer", required=False, default=None, help="Makes files of samples.")
    add_drawing(parser)
    parser.add_class_arguments(Comparison, "evaluate")
    return parser


def _check(init: Namespace) -> None:
    """Raises a ValueError unless images are either kept or measured."""
    if (init.format == _NOTHING) != (init.evaluate.reference is not None):
        raise ValueError(
            "images are measured while they are drawn if none are kept: give --evaluate.reference and --format none "
            "together, or measure a folder of images with disa-evaluate"
        )
    if init.grid and (init.format == _NOTHING or (init.writer and not init.writer.pictures)):
        raise ValueError("--grid shows images that are kept: leave it out, or choose another --format or --writer")


def _say(drawn: Drawn, adapts: bool, grid: bool) -> None:
    """Says where the samples are and what they took."""
    folder = drawn.folder
    written = [path for path in (folder.path, folder.archive) if path.exists()]
    if grid:
        written.append(folder.write_grid(range(min(drawn.count, _GRID))))
    timing = "" if drawn.seconds is None else f", {1000 * drawn.seconds:.1f} ms an image"
    evaluations = f"{'up to ' * adapts}{drawn.evaluations}"
    print(f"{drawn.count} images, {evaluations} head evaluations each{timing}: {', '.join(map(str, written))}")
