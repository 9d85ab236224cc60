"""`disa-fit`: trains a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningDataModule, Trainer, seed_everything

from disa_framework.cli.common import instantiate, make_module, make_parser, parse, run
from disa_framework.models.checkpoint import load_weights
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
    parser.add_class_arguments(ARDiffusionModule, sub_configs=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True, help="Where images come from.")
    parser.add_argument("--ckpt_path", "--checkpoint", type=str | None, help="Checkpoint of disa-fit to go on from.")
    config = parse(parser, args)
    seed_everything(config.seed, workers=True, verbose=False)
    init = instantiate(parser, config)
    trainer = Trainer(**init.trainer)
    torch.manual_seed(config.seed + trainer.global_rank)  # ranks begin alike, and draw noise of their own
    if trainer.is_global_zero:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        parser.save(config, str(folder / "config.yaml"), overwrite=True)
    if config.ckpt_path:
        load_weights(config.ckpt_path)  # says in one line what is wrong with it
    trainer.fit(make_module(init), datamodule=init.data, ckpt_path=config.ckpt_path, weights_only=True)


def command() -> None:
    """The program `disa-fit`."""
    run("disa-fit", fit)


