"""What the commands that draw share: weights, the autoencoder, and what is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import SUPPRESS, ArgumentParser, Namespace
from torch import Tensor

from disa_framework.cli.precision import add_precision
from disa_framework.data import in_turn, read_prompts
from disa_framework.generation import check_request
from disa_framework.models import ARDiffusionModel
from disa_framework.models.base import Condition
from disa_framework.models.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule

_AUTOENCODER = "disa_framework.models.Autoencoder"


def add_drawing(parser: ArgumentParser, unused: Sequence[str] = ("optimization",)) -> None:
    """The options of all commands that draw: the module, its weights, and what is asked for.

    Args:
        unused: parts of the module that the command has no use for. In configurations, which other commands read as
            well, they and the data of training may be there.
    """
    add = parser.add_argument
    add("--ckpt_path", "--checkpoint", type=str | None, help="Weights: .ckpt, .pth, .safetensors, or a folder of them.")
    add("--vae", type=str | None, help="Weights of the autoencoder, which turns latents into images.")
    add("--labels", type=list[int] | None, help="Classes to draw in turn (default: all).")
    add("--prompts", type=str | None, help="File of prompts: text, one a line, or GenEval's metadata (.jsonl).")
    add_precision(parser)
    parser.add_class_arguments(ARDiffusionModule, skip=set(unused), sub_configs=True)
    for section in ("data", *unused):
        add(f"--{section}", type=dict[str, Any] | None, help=SUPPRESS)


def with_vae(parser: ArgumentParser, config: Namespace) -> Namespace:
    """The configuration with `--vae` where the tokenizer takes its weights from."""
    if config.vae and not config.tokenizer:
        config = parser.parse_object({"tokenizer": _AUTOENCODER}, config)
    options: Any = config.tokenizer.get("init_args", {}) if config.tokenizer else {}
    if config.vae and "weights" not in options:
        raise ValueError(f"the tokenizer {config.tokenizer.class_path} has no weights: leave --vae out")
    if config.vae:
        options["weights"] = config.vae
    if options.get("weights", "") is None:
        raise ValueError("the autoencoder has weights: give them with --vae")
    return config


def classes(model: ARDiffusionModel, labels: list[int] | None) -> list[int]:
    """The classes to draw in turn."""
    if labels is None and not model.num_classes:
        raise ValueError("this model draws from prompts: give --prompts FILE")
    return list(range(model.num_classes)) if labels is None else labels


def requested(config: Namespace, module: ARDiffusionModule, count: int) -> Condition:
    """What `count` samples are asked to be: classes or prompts in turn.

    Raises:
        ValueError: if the model cannot draw this.
    """
    condition: Condition
    if config.prompts:
        condition = in_turn([prompt["prompt"] for prompt in read_prompts(config.prompts)], count)
    else:
        condition = torch.tensor(in_turn(classes(module.model, config.labels), count))
    check_request(module.model, module.num_stages, condition)
    return condition


def load(model: ARDiffusionModel, ckpt_path: str | None) -> None:
    """Gives a model its weights.

    Raises:
        ValueError: if they do not fit, or it has some and no file is given.
    """
    if ckpt_path:
        apply_weights(model, load_weights(ckpt_path), ckpt_path)
    elif any(True for _ in model.parameters()):
        raise ValueError("this model has weights: give a checkpoint with --ckpt_path")


def settings_of(parser: ArgumentParser, config: Namespace, model: ARDiffusionModel) -> dict[str, Any]:
    """All options, with weights by what they are, wherever they come from."""
    whole = json.loads(parser.dump(config, format="json", skip_unset=False))
    options = (whole["tokenizer"] or {}).get("init_args", {})
    if options.get("weights"):
        options["weights"] = digest_of(load_weights(options["weights"]))
    return {**whole, "precision": whole["trainer"]["precision"], "weights": digest_of(model.state_dict())}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
