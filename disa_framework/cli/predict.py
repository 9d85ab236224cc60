"""`disa-predict`: draws images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import SUPPRESS, ArgumentParser, Namespace
from lightning import Trainer

from disa_framework.callbacks import ImageWriter, SampleFolder, Throughput
from disa_framework.cli.common import make_module, make_parser, parse, run
from disa_framework.data import LabelsData
from disa_framework.generation import check_request
from disa_framework.models.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule

_PREDICT = """Draws images with an autoregressive image generator with a diffusion head.

examples:
  disa-predict --config digits/mar --ckpt_path last.ckpt --num_images 100 --output drawn --grid true
  disa-predict --config digits/mar --ckpt_path last.ckpt --schedule Linear --schedule.early 10 --schedule.late 2
  disa-predict --config digits/mar --ckpt_path last.ckpt --solver DDIM --guidance.scale 2 --labels '[3, 7]'

A run that was stopped goes on where it was when it is started again.
"""
_GRID = 100
_DECIDES_PIXELS = ("model", "tokenizer", "schedule", "solver", "guidance", "num_stages", "seed", "labels")


def predict(args: Sequence[str] | None = None) -> SampleFolder:
    """Draws images into a folder and returns it; see `disa-predict --help`."""
    parser = make_parser("disa-predict", _PREDICT)
    parser.add_class_arguments(ARDiffusionModule, skip={"optimization"}, sub_configs=True)
    for section in ("data", "optimization"):  # disa-fit's part of a configuration that both read
        parser.add_argument(f"--{section}", type=dict[str, Any] | None, help=SUPPRESS)
    parser.add_argument("--ckpt_path", type=str | None, help="Weights: .ckpt, .pth or .safetensors.")
    parser.add_argument("--num_images", type=int, default=64, help="How many images to draw.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images drawn together.")
    parser.add_argument("--labels", type=list[int] | None, help="Classes to draw in turn (default: all).")
    parser.add_argument("--output", type=str, default="outputs/samples", help="Folder for the images.")
    parser.add_argument("--npz", type=bool, default=False, help="Also write samples.npz: images and labels.")
    parser.add_argument("--grid", type=bool, default=False, help="Also write grid.png, the first 100 images.")
    config = parse(parser, args)
    init = parser.instantiate(config)
    module = make_module(init)
    if config.ckpt_path:
        apply_weights(module.model, load_weights(config.ckpt_path), config.ckpt_path)
    elif any(True for _ in module.model.parameters()):
        raise ValueError("this model has weights: give a checkpoint with --ckpt_path")
    return _draw(module, config, init.trainer, _settings(parser, config))


def command() -> None:
    """The program `disa-predict`."""
    run("disa-predict", predict)


def _draw(
    module: ARDiffusionModule, config: Namespace, trainer_options: Namespace, settings: dict[str, Any]
) -> SampleFolder:
    folder, timer = SampleFolder(config.output), Throughput()
    labels = list(range(module.model.num_classes)) if config.labels is None else config.labels
    data = LabelsData(config.num_images, labels, config.batch_size, finished=folder.finished)
    check_request(module.model, module.num_stages, torch.tensor(labels))
    evaluations = module.evaluations()
    options = {**trainer_options, "logger": False, "enable_checkpointing": False, "inference_mode": True}
    trainer = Trainer(**{**options, "callbacks": [ImageWriter(folder), timer]})
    if trainer.is_global_zero:
        folder.claim(settings)
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("all images are written")
    if trainer.is_global_zero:
        indices = range(config.num_images)
        if lost := set(indices) - folder.finished():
            raise OSError(f"{len(lost)} images are missing in {folder.path}: start the command again")
        # A run that found everything drawn has no time of its own.
        known = json.loads(folder.manifest.read_text()).get("seconds_per_image")
        made = {
            "settings": settings,
            "num_images": config.num_images,
            "labels_in_turn": labels,
            "budget": module.schedule.budget(module.num_stages),
            "head_evaluations_per_image": evaluations,
            "seconds_per_image": timer.seconds_per_image or known,
        }
        folder.describe(made)
        _derive(folder, config, made, [labels[i % len(labels)] for i in indices])
    return folder


def _derive(folder: SampleFolder, config: Namespace, made: dict[str, Any], labels: list[int]) -> None:
    """Writes what is made of the images, and says where everything is."""
    indices = range(config.num_images)
    written = [folder.path]
    if config.npz:
        written.append(folder.write_npz(indices, labels))
    if config.grid:
        written.append(folder.write_grid(indices[:_GRID]))
    seconds = made["seconds_per_image"]
    timing = "" if seconds is None else f", {1000 * seconds:.1f} ms an image"
    evaluations = made["head_evaluations_per_image"]
    print(f"{len(indices)} images, {evaluations} head evaluations each{timing}: {', '.join(map(str, written))}")


def _settings(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """What decides what the images look like."""
    whole = json.loads(parser.dump(config, format="json", skip_unset=False))
    weights = config.ckpt_path and hashlib.sha256(Path(config.ckpt_path).read_bytes()).hexdigest()
    return {**{name: whole.get(name) for name in _DECIDES_PIXELS}, "weights_sha256": weights}


