"""`disa-evaluate`: measures images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_only

from disa_framework.cli.common import instantiate, make_parser, parse, run
from disa_framework.cli.drawing import digest_of
from disa_framework.cli.report import report
from disa_framework.metrics import FeatureExtractor
from disa_framework.metrics.evaluation import WORKERS, Comparison, describe, figures, read_features
from disa_framework.metrics.feature_set import Features
from disa_framework.metrics.fid import save_statistics
from disa_framework.metrics.image_files import ImageFiles

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

    It returns nothing where only a reference is made.
    """
    parser = _make_parser()
    init = instantiate(parser, parse(parser, args))
    comparison = Comparison(**{field.name: init[field.name] for field in fields(Comparison)})
    extractor = comparison.extractor()
    reading = {"batch_size": init.batch_size, "num_workers": init.num_workers, "trainer": dict(init.trainer)}
    samples = _samples(init)
    weights = digest_of(extractor.state_dict())
    if init.make_reference:
        reference = _make_reference(init, extractor, reading)
    else:
        reference = comparison.reference_features(extractor, **reading)
    if samples is None:
        return {}
    found = read_features(samples, extractor, keep=comparison.precision_recall, **reading)
    result = {
        **figures(found, reference),
        "images": len(samples),
        "samples": init.samples,
        "reference": init.reference,
        **describe(extractor),
        "features_sha256": weights,
        "pixels": "bytes as they are in the files",
    }
    report(result, Path(init.output) if init.output else None)
    return result


def command() -> None:
    """The program `disa-evaluate`."""
    run("disa-evaluate", evaluate)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-evaluate", _EVALUATE)
    parser.usage = "disa-evaluate SAMPLES --reference FILE --inception FILE [--option VALUE ...]"
    add = parser.add_argument
    add("samples", type=str | None, nargs="?", help="Images: a folder, or an .npz.")
    parser.add_class_arguments(Comparison)
    add("--make_reference", "--make-reference", type=str | None, help="Images to write the --reference of.")
    add("--count", type=int | None, help="How many images there have to be.")
    add("--batch_size", type=PositiveInt, default=64, help="Images looked at together.")
    add("--num_workers", type=int, default=WORKERS, help="Processes that read images, for each device.")
    add("--output", type=str | None, help="File for the figures (.json).")
    return parser


def _samples(init: Namespace) -> ImageFiles | None:
    """The images to measure, unless only a reference is made."""
    if init.output:
        Path(init.output).parent.mkdir(parents=True, exist_ok=True)
    if init.samples is None and init.make_reference:
        return None
    if init.samples is None:
        raise ValueError("give the images to measure: a folder, or an .npz")
    samples = ImageFiles(init.samples)
    if init.count not in (None, len(samples)):
        raise ValueError(f"{init.samples} holds {len(samples)} images, not {init.count}")
    return samples


def _make_reference(init: Namespace, extractor: FeatureExtractor, reading: dict[str, Any]) -> Features:
    """Writes the statistics of images."""
    if not str(init.reference).endswith(".npz"):
        raise ValueError("say with --reference to which file (.npz) the statistics are to be written")
    path, images = Path(init.reference), ImageFiles(init.make_reference, init.image_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = read_features(images, extractor, keep=init.precision_recall, **reading)
    _save(path, found, len(images))
    return found


@rank_zero_only
def _save(path: Path, found: Features, count: int) -> None:
    save_statistics(path, found.mu, found.sigma)
    print(f"statistics of {count} images: {path}")
