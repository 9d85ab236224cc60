"""What the commands that draw share: weights, the autoencoder, and what is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from disa_framework.data import in_turn, read_prompts
from disa_framework.generation import check_request
from disa_framework.models import ARDiffusionModel
from disa_framework.models.base import Condition
from disa_framework.models.checkpoint import apply_weights, load_weights
from disa_framework.module import ARDiffusionModule

_AUTOENCODER = "disa_framework.models.Autoencoder"


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
