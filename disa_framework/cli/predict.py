"""`disa-predict`: draws images."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning import Trainer
from torch import Tensor

from disa_framework.callbacks import Evaluation, ImageWriter, SampleFolder, Throughput
from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.cli.drawing import add_drawing, classes, digest_of, load, settings_of, with_vae
from disa_framework.cli.report import report
from disa_framework.data import RequestData, in_turn, read_prompts
from disa_framework.generation import check_request
from disa_framework.metrics.evaluation import Comparison, collect, describe, figures
from disa_framework.metrics.feature_set import FeatureSet
from disa_framework.models import Identity
from disa_framework.module import ARDiffusionModule

_PREDICT = """Draws images with an autoregressive image generator with a diffusion head.

examples:
  disa-predict --config digits/mar --ckpt_path last.ckpt --num_images 100 --output drawn --grid true
  disa-predict --config digits/mar --ckpt_path last.ckpt --schedule Linear --schedule.early 10 --schedule.late 2
  disa-predict --config digits/mar --ckpt_path last.ckpt --solver DDIM --guidance.scale 2 --labels '[3, 7]'
  disa-predict --config mar/base --ckpt_path checkpoint-last.pth --vae kl16.ckpt --images_per_class 50 --format npz
  disa-predict --config mar/base --ckpt_path checkpoint-last.pth --vae kl16.ckpt --images_per_class 50 --format none \
      --evaluate.reference adm_in256_stats.npz --evaluate.inception weights-inception-2015-12-05-6726825d.pth
  disa-predict --config harmon/1_5b --ckpt_path harmon_1.5b.pth --vae kl16.ckpt --prompts prompts.txt

A run that was stopped goes on where it was when it is started again, unless it keeps no images (--format none).
"""
_GRID = 100
_DECIDES_PIXELS = (
    "model", "tokenizer", "schedule", "solver", "guidance", "num_stages", "cache", "seed", "labels", "images_per_class",
    "precision", "weights",
)  # fmt: skip
_NOTHING = "none"  # to keep


def predict(args: Sequence[str] | None = None) -> SampleFolder:
    """Draws images into a folder and returns it; see `disa-predict --help`."""
    parser = _make_parser()
    config = with_vae(parser, parse(parser, args))
    _check_measured(config)
    prompts = read_prompts(config.prompts) if config.prompts else []
    init = instantiate(parser, config)
    module, folder = make_module(init), SampleFolder(config.output, prompts)
    labels = None if prompts else classes(module.model, config.labels)
    data = _requests(config, prompts, labels, tuple if config.format == _NOTHING else folder.finished)
    _check(module, data)
    evaluations = module.evaluations()
    load(module.model, config.ckpt_path)
    settings = settings_of(parser, config, module.model)
    asked = [prompt["prompt"] for prompt in prompts] or None
    made = {
        "settings": {**{name: settings.get(name) for name in _DECIDES_PIXELS}, "prompts": asked},
        "num_images": data.num_images,
        "labels_in_turn": labels,
        "images_per_class": config.images_per_class,
        "budget": module.schedule.budget(module.num_stages),
        "head_evaluations_per_image": evaluations,
        "budget_is_upper_bound": module.schedule.reads_signals,
    }
    options = {**init.trainer, "logger": False, "enable_checkpointing": False, "inference_mode": True}
    if config.format == _NOTHING:
        _measure(module, data, init.evaluate, made, options, folder.path / "evaluation.json")
    else:
        _keep(module, data, folder, config, made, options)
    return folder


def command() -> None:
    """The program `disa-predict`."""
    run("disa-predict", predict)


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-predict", _PREDICT)
    add = parser.add_argument
    add("--num_images", type=int | None, help="How many images to draw (default: 64, or what the prompts ask for).")
    add("--images_per_class", type=PositiveInt | None, help="Images of each class, class after class.")
    add("--images_per_prompt", type=PositiveInt, default=4, help="Images of each prompt.")
    add("--batch_size", type=PositiveInt, default=64, help="Images drawn together.")
    add("--output", type=str, default="outputs/samples", help="Folder for the images.")
    form = Literal["png", "npz", "both", "none"]
    add("--format", type=form, default="png", help="What to keep: PNG files, samples.npz as ADM reads it, or both.")
    add("--grid", type=bool, default=False, help="Also write grid.png, the first 100 images.")
    add_drawing(parser)
    parser.add_class_arguments(Comparison, "evaluate")
    return parser


def _check_measured(config: Namespace) -> None:
    """Raises a ValueError unless images are either kept or measured."""
    if (config.format == _NOTHING) != (config.evaluate.reference is not None):
        raise ValueError(
            "images are measured while they are drawn if none are kept: give --evaluate.reference and --format none "
            "together, or measure a folder of images with disa-evaluate"
        )
    if config.format == _NOTHING and config.grid:
        raise ValueError("--grid shows images that are kept: leave it out, or choose another --format")


def _requests(
    config: Namespace,
    prompts: list[dict[str, Any]],
    labels: list[int] | None,
    finished: Callable[[], Collection[int]],
) -> RequestData:
    """What to draw: prompts, or labels where there are any."""
    if labels is not None:
        each = config.images_per_class
        count = _count(config, "classes", labels, each) if each else config.num_images
        count = 64 if count is None else count
        asked = in_turn([label for label in labels for _ in range(each or 1)], count)
        return RequestData(count, torch.tensor(asked), config.batch_size, finished)
    for option in ("labels", "images_per_class"):
        if config[option] is not None:
            raise ValueError(f"give either --{option} or --prompts")
    count = _count(config, "prompts", prompts, config.images_per_prompt)
    return RequestData(count, in_turn([p["prompt"] for p in prompts], count), config.batch_size, finished)


def _count(config: Namespace, kind: str, asked: Sequence[Any], each: int) -> int:
    """How many images there are if there are so many of each."""
    count = len(asked) * each
    if config.num_images not in (None, count):
        raise ValueError(
            f"{len(asked)} {kind} with {each} images each are {count} images, not {config.num_images}: "
            "leave --num_images out"
        )
    return count


def _check(module: ARDiffusionModule, data: RequestData) -> None:
    """Raises a ValueError that says what would fit, if this cannot be drawn or cannot be shown."""
    check_request(module.model, module.num_stages, data.condition)
    channels = module.model.latent_shape[0]
    if isinstance(module.tokenizer, Identity) and channels not in (1, 3):
        raise ValueError(f"this model draws latents of {channels} channels: give the autoencoder with --vae")


def _keep(
    module: ARDiffusionModule,
    data: RequestData,
    folder: SampleFolder,
    config: Namespace,
    made: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Draws images into the folder."""
    timer = Throughput()
    trainer = Trainer(**{**options, "callbacks": [timer, ImageWriter(folder)]})  # files are written off the clock
    if trainer.is_global_zero:
        folder.claim(made["settings"])
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("all images are written")
    if trainer.is_global_zero:
        _finish(folder, config, data, made, timer.seconds_per_image)


def _measure(
    module: ARDiffusionModule,
    data: RequestData,
    comparison: Comparison,
    made: dict[str, Any],
    options: dict[str, Any],
    output: Path,
) -> None:
    """Measures images while they are drawn, and keeps none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    extractor, timer = comparison.extractor(), Throughput()
    digest = digest_of(extractor.state_dict())
    reference = comparison.reference_features(extractor, trainer=options)
    features = FeatureSet(extractor, data.num_images, comparison.precision_recall)
    trainer = Trainer(**{**options, "callbacks": [timer, Evaluation(features)]})
    trainer.predict(module, datamodule=data, return_predictions=False)
    result = {
        **figures(collect(features), reference),
        "images": data.num_images,
        "head_evaluations_per_image": made["head_evaluations_per_image"],
        "seconds_per_image": timer.seconds_per_image,
        "reference": comparison.reference,
        **describe(extractor),
        "features_sha256": digest,
        "pixels": "rounded to bytes",
        "made": made,
    }
    report(result, output)


def _finish(
    folder: SampleFolder, config: Namespace, data: RequestData, made: dict[str, Any], seconds: float | None
) -> None:
    """Brings the images into the form that is asked for, and says where they are and what made them."""
    count, asked = data.num_images, data.condition
    if lost := set(range(count)) - folder.finished():
        raise OSError(f"{len(lost)} images are missing in {folder.path}: start the command again")
    # A run that found everything drawn has no time of its own.
    seconds = seconds or json.loads(folder.manifest.read_text()).get("seconds_per_image")
    folder.describe({**made, "seconds_per_image": seconds})
    folder.keep(config.format, count, asked.tolist() if isinstance(asked, Tensor) else None)
    written = [path for path in (folder.path, folder.archive) if path.exists()]
    if config.grid:
        written.append(folder.write_grid(range(min(count, _GRID))))
    timing = "" if seconds is None else f", {1000 * seconds:.1f} ms an image"
    evaluations = f"{'up to ' * made['budget_is_upper_bound']}{made['head_evaluations_per_image']}"
    print(f"{count} images, {evaluations} head evaluations each{timing}: {', '.join(map(str, written))}")
