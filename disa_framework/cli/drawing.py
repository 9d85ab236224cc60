"""What the commands that draw share: the module, its weights, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from disa_framework.cli.common import add_sampling
from disa_framework.data.conditions import ConditionReader, Labels, Prompts
from disa_framework.hub.checkpoint import load_into
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, cycled

_AUTOENCODER = "disa_framework.tokenizers.Autoencoder"


def add_drawing(parser: ArgumentParser, unused: Sequence[str] = ()) -> None:
    """The options of all commands that draw: the module, its weights, and what is asked for.

    Args:
        unused: parts of the sampling config that the command has no use for. In configurations, which other commands
            read as well, they, the data, the optimization and what training draws may be there.
    """
    add = parser.add_argument
    weights = (
        "Weights: .ckpt, .pth, .safetensors, or a folder of them (default: those beside the configuration, if any)."
    )
    add("--ckpt_path", "--checkpoint", type=str | None, help=weights)
    add("--vae", type=str | None, help="Weights of the autoencoder, which turns latents into images.")
    add("--labels", type=list[int] | None, help="Classes to draw in turn (default: all).")
    add("--prompts", type=str | None, help="File of prompts: text, one a line, or GenEval's metadata (.jsonl).")
    what = "Reads what else a model is asked for."
    parser.add_subclass_arguments(ConditionReader, "condition", required=False, help=what, default=None)
    precision = (
        "Of weights and drawing, 32 by default; latents in bf16 are about 1% off those in 32. auto is bf16 where the "
        "device computes in it, and else 32."
    )
    add("--precision", type=Literal[32, "bf16", 16, "auto"] | None, help=precision)
    parser.add_class_arguments(ARDiffusionModule, skip={"sampling", "optimization"}, sub_configs=True)
    add_sampling(parser, skip=unused)
    for section in ("data", "optimization", "validation", *unused):
        add(f"--{section}", type=dict[str, Any] | None, help=SUPPRESS)
    add("--samples", type=int | None, help=SUPPRESS)


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


def reader(init: Namespace, each: int | None = None) -> ConditionReader:
    """What reads the condition: the one that is given, or that of prompts or labels, so many of each."""
    given = [name for name in ("condition", "prompts", "labels") if init.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"give either --{' or --'.join(given)}")
    if init.condition is not None and each:
        raise ValueError("--each is for classes and prompts: leave it out, or --condition")
    if init.condition is not None:
        return init.condition
    if init.prompts is not None:
        return Prompts(init.prompts, each)
    return Labels(None if init.labels is None else tuple(init.labels), each)


def requested(init: Namespace, module: ARDiffusionModule, count: int | None) -> Condition:
    """What `count` samples are asked to be, in turn, or as many as the options say.

    Raises:
        ValueError: if the model cannot draw this.
    """
    given = reader(init)
    condition = given.read(module.model)
    module.model.check_condition(condition)
    return cycled(condition, given.count(condition, count))


def load(model: ARDiffusionModel, init: Namespace) -> None:
    """Gives a model its weights: those that are given, or those that lie beside its configuration.

    Raises:
        ValueError: if they do not fit, or it has some and there is no file.
    """
    beside = [Path(str(path)).with_suffix(".safetensors") for path in init.config or () if path]
    found = init.ckpt_path or next((path for path in reversed(beside) if path.is_file()), None)
    if found:
        load_into(model, found)
    elif any(True for _ in model.parameters()):
        raise ValueError("this model has weights: give a checkpoint with --ckpt_path")
