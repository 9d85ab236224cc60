"""`disa-fit`: trains a model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import TensorBoardLogger

from disa_framework.callbacks import FiniteLoss, TrainingDistance, TrainingLines, TrainingSamples
from disa_framework.cli.common import add_sampling, instantiate, make_module, make_parser, parse
from disa_framework.files import write_atomically
from disa_framework.hub.checkpoint import load_into
from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule

_FIT = """Trains an autoregressive image generator with a diffusion head.

examples:
  disa-fit --config digits/mar
  disa-fit --config digits/mar --data.polarity plain --trainer.max_steps 500
  disa-fit --config digits/mar --ckpt_path outputs/digits-mar/last.ckpt
  disa-fit --config digits/mar --validation.metric FID --validation.metric.features DigitsFeatures \\
      --validation.metric.reference DigitsData --validation.every 3
"""

_LEAST = {
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0,
    "min_epochs": 0, "min_steps": 0, "num_sanity_val_steps": -1, "val_check_interval": 1e-6,
}  # fmt: skip
"""Of the trainer's options that Lightning itself takes at any value."""

_EVERY = 10
"""Steps between two points of a curve. Epochs of small data may have fewer, and have a point for each validation."""


def fit(args: Sequence[str] | None = None) -> None:
    """Trains. `args` are the command line's; see `disa-fit --help`."""
    parser = _make_parser()
    config = parse(parser, args)
    seed_everything(config.seed, workers=True, verbose=False)
    init = instantiate(parser, config)
    trainer = _trainer(init.trainer, _describing(parser.dump(config).encode()), *_watching(init))
    module = make_module(init)
    folder = Path(trainer.default_root_dir)
    if 0 in (trainer.max_steps, trainer.max_epochs, trainer.limit_train_batches):
        raise ValueError("nothing would be trained: --trainer.max_steps, max_epochs or limit_train_batches is 0")
    if config.ckpt_path:
        load_into(module.model, config.ckpt_path)
        _check_training(config.ckpt_path)
    elif (folder / "last.ckpt").exists() and not any(folder.glob("hpc_ckpt_*.ckpt")):  # of SLURM's requeueing
        raise ValueError(
            f"{folder} holds a trained model: go on with --ckpt_path {folder / 'last.ckpt'}, or train into another "
            "--trainer.default_root_dir, or delete it"
        )
    trainer.fit(module, datamodule=init.data, ckpt_path=config.ckpt_path, weights_only=True)
    if not trainer.global_step:
        raise ValueError("nothing was trained: the data have no whole batch, or --trainer.max_time is over")


def _make_parser() -> ArgumentParser:
    parser = make_parser("disa-fit", _FIT)
    parser.add_class_arguments(ARDiffusionModule, skip={"sampling"}, sub_configs=True)
    add_sampling(parser)
    add = parser.add_argument
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="Where images come from.")
    add("--ckpt_path", "--checkpoint", type=str | None, help="Checkpoint of disa-fit to go on from.")
    shown = "Drawn from the same noise at every validation, as a grid in samples/ and in the logger; 0 for none."
    add("--samples", type=int, default=20, help=shown)
    what = "What is measured of samples that are drawn at validations, as the curve `distance`."
    parser.add_subclass_arguments(Quality, "validation.metric", required=False, help=what)
    add("--validation.samples", type=PositiveInt, default=1000, help="How many are drawn for it.")
    add("--validation.every", type=PositiveInt, default=1, help="Of so many validations, one is measured.")
    return parser


def _watching(init: Namespace) -> list[Callback]:
    """What draws at validations."""
    shown = [TrainingSamples(init.samples)] if init.samples else []
    metric, samples, every = (init.validation[name] for name in ("metric", "samples", "every"))
    return [*shown, *([TrainingDistance(metric, samples, every)] if metric else [])]


def _describing(config: bytes) -> Callback:
    """Writes the configuration when training begins, and everything it names is there."""

    def write(trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "config.yaml", config)

    return LambdaCallback(on_train_start=write)


def _trainer(options: Mapping[str, Any], *more: Callback) -> Trainer:
    """Lightning's, with what watches over training, TensorBoard's curves unless another logger is asked for, and lines
    where its progress bar would be none."""
    for name, least in _LEAST.items():
        if isinstance(options[name], int | float) and not options[name] >= least:
            raise ValueError(f"--trainer.{name} must be at least {least}, got {options[name]}")
    callbacks, bar = options["callbacks"] or [], options["enable_progress_bar"]
    callbacks = [*(callbacks if isinstance(callbacks, list) else [callbacks]), FiniteLoss(), *more]
    if bar is None and not sys.stdout.isatty():
        bar = False
        callbacks.append(TrainingLines(partial(print, file=sys.stderr, flush=True)))
    logger, every = options["logger"], options["log_every_n_steps"]
    if logger in (None, True):
        # One folder, so that the curves of a run that goes on go on, too.
        logger = TensorBoardLogger(options["default_root_dir"] or ".", name="", version="logs")
    if every is None:
        every = _EVERY
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
    ours = {"logger": logger, "log_every_n_steps": every}
    return Trainer(**{**options, **ours, "callbacks": callbacks, "enable_progress_bar": bar})


def _check_training(checkpoint: str) -> None:
    """Raises a ValueError if training cannot go on from it."""
    try:
        torch.load(checkpoint, "cpu", weights_only=True, mmap=True)["loops"]
    except Exception as error:  # of other formats
        raise ValueError(f"{checkpoint} has no training to go on with: give a .ckpt of disa-fit") from error
