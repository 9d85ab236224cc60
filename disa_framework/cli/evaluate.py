"""`disa-evaluate`: measures images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from disa_framework.cli.common import instantiate, make_parser, parse
from disa_framework.cli.printing import show_figures
from disa_framework.data.reading import Reading
from disa_framework.files import check_writable
from disa_framework.metrics.evaluation import Comparison, make_reference
from disa_framework.metrics.evaluation import evaluate as measure

_EVALUATE = """Measures images against a reference: FID, Inception Score, precision and recall.

examples:
  disa-evaluate drawn --reference adm_in256_stats.npz --inception inception.pth --count 50000
  disa-evaluate drawn/samples.npz --reference digits --features DigitsFeatures --precision_recall true
  disa-evaluate --make-reference imagenet/train --image_size 256 --reference in256.npz --inception inception.pth

SAMPLES and images of a reference are a folder of PNG or JPEG files, flat or nested, or an .npz as ADM writes it.
Nothing is kept on the way: a run that was stopped is started again.
"""


def evaluate(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures images and returns the figures with what they were made with; see `disa-evaluate --help`.

    It returns nothing where only a reference is made, and on other processes than the first.
    """
    parser = _make_parser()
    init = instantiate(parser, parse(parser, args))
    comparison = Comparison(**{field.name: init[field.name] for field in fields(Comparison)})
    reading = Reading(init.batch_size, init.num_workers, dict(init.trainer))
    if (init.samples is None) == (init.make_reference is None):
        raise ValueError("give the images to measure, a folder or an .npz, or those to --make-reference of")
    if init.output:
        check_writable(Path(init.output))
    if init.make_reference:
        if made := make_reference(init.make_reference, comparison, reading):
            print(f"statistics of {made} images: {comparison.reference}")
        return {}
    result = measure(init.samples, comparison, reading, init.count)
    if result:
        show_figures(result, init.output)
    return result or {}


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-evaluate", _EVALUATE)
    parser.usage = "disa-evaluate SAMPLES --reference FILE --inception FILE [--option VALUE ...]"
    add = parser.add_argument
    add("samples", type=str | None, nargs="?", help="Images: a folder, or an .npz.")
    parser.add_class_arguments(Comparison)
    parser.add_class_arguments(Reading, skip={"trainer"})
    add("--make_reference", "--make-reference", type=str | None, help="Images to write the --reference of.")
    add("--count", type=int | None, help="How many images there have to be.")
    add("--output", type=str | None, help="File for the figures (.json).")
    return parser
