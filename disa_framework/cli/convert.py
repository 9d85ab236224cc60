"""Converts weights to .safetensors with the model's description in it.

Reads published checkpoints (.pth, .ckpt), checkpoints of disa-fit, state dicts, .safetensors, and folders of
Hugging Face, in shards or whole. Published models are recognized; others need --model.

examples:
  disa-convert checkpoint-last.pth mar-large.safetensors
  disa-convert outputs/digits-mar/last.ckpt digits.safetensors --model digits/mar
  disa-convert Harmon-1_5B harmon.safetensors --vae kl16.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace

from disa_framework import hub
from disa_framework.cli.common import find_config, make_parser, parse
from disa_framework.cli.drawing import add_drawing
from disa_framework.cli.refusals import OneLine


def convert(args: Sequence[str] | None = None) -> None:
    """Converts a file; see `disa-convert --help`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLine(prog="disa-convert", description=__doc__, formatter_class=formatter)
    parser.add_argument("source", help="File or folder to read.")
    parser.add_argument("target", help="The .safetensors file to write.")
    parser.add_argument("--model", help="Configuration of a model that is not a published one, by path or name.")
    parser.add_argument("--vae", help="Where to write an autoencoder that lies in the same file (Harmon).")
    parser.add_argument("--overwrite", action="store_true", help="Replace files that are there.")
    options = vars(parser.parse_args(args))
    described = _model(options.pop("model"))
    print(hub.convert(**options, **described).report)


def _model(config: str | None) -> dict[str, Any]:
    """The model of a configuration: what describes it, and itself, in keys and shapes alone."""
    if config is None:
        return {}
    parser = make_parser("disa-convert --model", "")
    add_drawing(parser)
    parsed = parse(parser, ["--config", find_config(config)])
    described = json.loads(parser.dump(parsed, format="json"))["model"]
    with torch.device("meta"):
        network = parser.instantiate(Namespace(model=parsed.model)).model
    return {
        "model": {"class_path": described["class_path"], "init_args": described.get("init_args", {})},
        "network": network,
    }
