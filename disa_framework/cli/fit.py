"""`disa-fit`: trains a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningDataModule, Trainer, seed_everything

from disa_framework.cli.common import add_sampling, instantiate, make_module, make_parser, parse, run
from disa_framework.hub.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule

_FIT = """Trains an autoregressive image generator with a diffusion head.

examples:
  disa-fit --config digits/mar
  disa-fit --config digits/mar --data.polarity plain --trainer.max_steps 500
  disa-fit --config digits/mar --ckpt_path outputs/digits-mar/last.ckpt
"""


def fit(args: Sequence[str] | None = None) -> None:
    """Trains. `args` are the command line's; see `disa-fit --help`."""
    parser = make_parser("disa-fit", _FIT)
    parser.add_class_arguments(ARDiffusionModule, skip={"sampling"}, sub_configs=True)
    add_sampling(parser)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="Where images come from.")
    parser.add_argument("--ckpt_path", "--checkpoint", type=str | None, help="Checkpoint of disa-fit to go on from.")
    config = parse(parser, args)
    seed_everything(config.seed, workers=True, verbose=False)
    init = instantiate(parser, config)
    trainer, module = Trainer(**init.trainer), make_module(init)
    folder, step = Path(trainer.default_root_dir), 0
    if config.ckpt_path:
        apply_weights(module.model, load_weights(config.ckpt_path), config.ckpt_path)
        step = _steps(config.ckpt_path)
    elif (folder / "last.ckpt").exists():
        raise ValueError(
            f"{folder} holds a trained model: go on with --ckpt_path {folder / 'last.ckpt'}, or train into another "
            "--trainer.default_root_dir, or delete it"
        )
    # Ranks begin alike, and draw noise of their own; a run that goes on does not draw what it began with.
    torch.manual_seed((step << 32) + config.seed + trainer.global_rank)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        parser.save(config, str(folder / "config.yaml"), overwrite=True)
    trainer.fit(module, datamodule=init.data, ckpt_path=config.ckpt_path, weights_only=True)


def _steps(checkpoint: str) -> int:
    """How many steps a model was trained for."""
    try:
        return int(torch.load(checkpoint, "cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:  # of other formats
        raise ValueError(f"{checkpoint} has no training to go on with: give a .ckpt of disa-fit") from error


def command() -> None:
    """The program `disa-fit`."""
    run("disa-fit", fit)
