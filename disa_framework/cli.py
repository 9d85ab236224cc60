"""The commands `disa-fit` and `disa-predict`: parsing and wiring, nothing else."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace
from lightning import LightningDataModule, Trainer, seed_everything

from disa_framework.callbacks import ImageWriter, SampleFolder, Throughput
from disa_framework.data import LabelsData
from disa_framework.generation import check_request
from disa_framework.models import ARDiffusionModel, Tokenizer
from disa_framework.models.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import StepSchedule
from disa_framework.solvers import Solver

_PACKAGE = Path(__file__).parent
_CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout

_FIT = """Trains an autoregressive image generator with a diffusion head.

examples:
  disa-fit --config digits/mar
  disa-fit --config digits/mar --data.polarity plain --trainer.max_steps 500
  disa-fit --config digits/mar --ckpt_path outputs/digits-mar/last.ckpt
"""
_PREDICT = """Draws images with an autoregressive image generator with a diffusion head.

examples:
  disa-predict --config digits/mar --ckpt_path last.ckpt --num_images 100 --output drawn --grid true
  disa-predict --config digits/mar --ckpt_path last.ckpt --schedule Linear --schedule.early 10 --schedule.late 2
  disa-predict --config digits/mar --ckpt_path last.ckpt --solver DDIM --guidance.scale 2 --labels '[3, 7]'

A run that was stopped goes on where it was when it is started again.
"""
_GRID = 100
_PLUGGABLE = {"model": ARDiffusionModel, "schedule": StepSchedule, "solver": Solver, "tokenizer": Tokenizer}
_DECIDES_PIXELS = ("model", "tokenizer", "schedule", "solver", "guidance", "num_stages", "seed", "labels")


def fit(args: Sequence[str] | None = None) -> None:
    """Trains. `args` are the command line's; see `disa-fit --help`."""
    parser = _parser("disa-fit", _FIT)
    parser.add_class_arguments(ARDiffusionModule, sub_configs=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="Where images come from.")
    parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint of disa-fit to go on from.")
    config = _parse(parser, args)
    seed_everything(config.seed, workers=True, verbose=False)
    init = parser.instantiate(config)
    trainer = Trainer(**init.trainer)
    torch.manual_seed(config.seed + trainer.global_rank)  # ranks begin alike, and draw noise of their own
    if trainer.is_global_zero:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        parser.save(config, str(folder / "config.yaml"), overwrite=True)
    if config.ckpt_path:
        load_weights(config.ckpt_path)  # says in one line what is wrong with it
    trainer.fit(_module(init), datamodule=init.data, ckpt_path=config.ckpt_path, weights_only=True)


def predict(args: Sequence[str] | None = None) -> SampleFolder:
    """Draws images into a folder and returns it; see `disa-predict --help`."""
    parser = _parser("disa-predict", _PREDICT)
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
    config = _parse(parser, args)
    init = parser.instantiate(config)
    module = _module(init)
    if config.ckpt_path:
        apply_weights(module.model, load_weights(config.ckpt_path), config.ckpt_path)
    elif any(True for _ in module.model.parameters()):
        raise ValueError("this model has weights: give a checkpoint with --ckpt_path")
    return _draw(module, config, init.trainer, _settings(parser, config))


def fit_command() -> None:
    """The program `disa-fit`."""
    _run("disa-fit", fit)


def predict_command() -> None:
    """The program `disa-predict`."""
    _run("disa-predict", predict)


def find_config(name: str) -> str:
    """Path of a configuration given by path, or by its name in the package: `digits/mar`.

    Raises:
        ValueError: naming those that there are.
    """
    candidates = [Path(name), *(folder / Path(name).with_suffix(".yaml") for folder in _CONFIG_FOLDERS)]
    for path in candidates:
        if path.is_file():
            return str(path)
    known = sorted(str(p.relative_to(f).with_suffix("")) for f in _CONFIG_FOLDERS for p in f.rglob("*.yaml"))
    raise ValueError(f"no configuration {name!r}: give the path of a file, or one of {', '.join(known)}")


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the examples."""


class _Parser(ArgumentParser):
    """Names the known classes where an unknown one was asked for."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for option, kind in _PLUGGABLE.items():
            if f'Parser key "{option}"' in message:
                message += (
                    f"\n  known for --{option}: {', '.join(_names(kind))}\n"
                    "  or a class of your own by its path: my_package.MyClass"
                )
        super().error(message, ex)


def _names(kind: type[Any]) -> list[str]:
    """Public subclasses by name."""
    found = [name for child in kind.__subclasses__()
        for name in (child.__name__, *_names(child))]
    return sorted({name for name in found if not name.startswith("_")})


class _FindConfig(ActionConfigFile):
    """`--config`, by path or by name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = find_config(values)
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, path, option_string)


def _parser(prog: str, description: str) -> ArgumentParser:
    usage = f"{prog} --config NAME [--option VALUE ...]"
    parser = _Parser(prog=prog, usage=usage, description=description, formatter_class=_Help)
    parser.add_argument("--config", action=_FindConfig, help="Configuration, by path or name (digits/mar).")
    return parser


def _parse(parser: ArgumentParser, args: Sequence[str] | None) -> Namespace:
    _quiet()
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)  # last, for its forty options
    return parser.parse_args(None if args is None else list(args))


def _module(init: Namespace) -> ARDiffusionModule:
    names = inspect.signature(ARDiffusionModule).parameters
    return ARDiffusionModule(**{name: init[name] for name in names if name in init})


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


def _run(prog: str, command: Callable[[], object]) -> None:
    """Runs a command; what a user can mend is one line on standard error and exit status 1."""
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(1)


def _quiet() -> None:
    """Leaves out what libraries say about themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*treespec.*is deprecated",
        "Couldn't infer the batch indices",
        "Total length of `DataLoader` across ranks is zero",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", message=message)
