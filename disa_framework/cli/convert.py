"""`disa-convert`: brings weights of any layout into one file that says what it holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from disa_framework.cli.common import find_config, make_parser, run
from disa_framework.models import ARDiffusionModel
from disa_framework.models.checkpoint import misfit, read_checkpoint, write_checkpoint
from disa_framework.models.published import PUBLISHED, build, recognize, stored
from disa_framework.module import ARDiffusionModule

_CONVERT = """Converts weights to .safetensors with the model's description in it.

Reads published checkpoints (.pth, .ckpt), checkpoints of disa-fit, state dicts, .safetensors, and folders of
Hugging Face, in shards or whole. Published models are recognized; others need --model.

examples:
  disa-convert checkpoint-last.pth mar-large.safetensors
  disa-convert outputs/digits-mar/last.ckpt digits.safetensors --model digits/mar
  disa-convert Harmon-1_5B harmon.safetensors --vae kl16.safetensors
"""

def convert(args: Sequence[str] | None = None) -> None:
    """Converts a file; see `disa-convert --help`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="disa-convert", description=_CONVERT, formatter_class=formatter)
    add = parser.add_argument
    add("source", type=Path, help="File or folder to read.")
    add("target", type=Path, help="The .safetensors file to write.")
    add("--model", help="Configuration of a model that is not a published one, by path or name.")
    add("--vae", type=Path, help="Where to write an autoencoder that lies in the same file (Harmon).")
    add("--overwrite", action="store_true", help="Replace files that are there.")
    convert_file(**vars(parser.parse_args(args)))


def convert_file(
    source: Path, target: Path, model: str | None = None, vae: Path | None = None, overwrite: bool = False
) -> str | None:
    """Converts a file and says what it is; see `disa-convert --help`.

    Returns:
        The model's name, if it is a published one.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source is damaged, of an unknown kind or does not fit the model; a target that cannot be.
        OSError: a target cannot be written.
    """
    for path in filter(None, (target, vae)):
        _check_target(path, overwrite)
    checkpoint = read_checkpoint(source)
    print(f"{source}: {checkpoint.layout}")
    if vae and not checkpoint.autoencoder:
        raise ValueError(f"there is no autoencoder in {source}: leave --vae out")
    name = None
    if model is not None:
        described, network = _configured(model)
    else:
        if checkpoint.model is None:
            name = recognize(checkpoint.weights, source)
            print(f"{name}: {PUBLISHED[name].description}")
        described = checkpoint.model or PUBLISHED[str(name)].model
        network = _blank(described)
    _write(source, target, checkpoint.weights, described, network)
    if vae:
        described = PUBLISHED["kl16"].model
        _write(source, vae, checkpoint.autoencoder, described, _blank(described))
    elif checkpoint.autoencoder:
        print(f"left out: the autoencoder, {len(checkpoint.autoencoder)} tensors (write it with --vae)")
    return name


def command() -> None:
    """The program `disa-convert`."""
    run("disa-convert", convert)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"what is written is a .safetensors file, not {path}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another name, or --overwrite")


def _write(
    source: Path, target: Path, weights: dict[str, Tensor], described: dict[str, Any], network: nn.Module
) -> None:
    """Writes weights, if they fit the described network, and says what they are."""
    if problems := misfit(network.state_dict(), weights):
        raise ValueError(f"{source} does not fit {described['class_path']}: {problems}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(target, weights, described)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()})
    print(
        f"{target}: {described['class_path']}, {millions:.1f} million parameters in {len(weights)} tensors, "
        f"{' and '.join(kinds)} as they were"
    )


def _blank(described: dict[str, Any]) -> nn.Module:
    """What is described, in keys and shapes alone."""
    with torch.device("meta"):
        return stored(build(**described))


def _configured(config: str) -> tuple[dict[str, Any], nn.Module]:
    """The model of a configuration: its class path and arguments, and itself, in keys and shapes alone."""
    parser = make_parser("disa-convert --model", "")
    parser.add_subclass_arguments(ARDiffusionModel, "model", required=True)
    # Everything else in a configuration, which the commands share, is passed over.
    for section in {*signature(ARDiffusionModule).parameters, "data", "trainer", "ckpt_path"} - {"model"}:
        parser.add_argument(f"--{section}", type=Any)
    parsed = parser.parse_args(["--config", find_config(config)])
    described = json.loads(parser.dump(parsed, format="json"))["model"]
    with torch.device("meta"):
        model = parser.instantiate(Namespace(model=parsed.model)).model
    return {"class_path": described["class_path"], "init_args": described.get("init_args", {})}, model
