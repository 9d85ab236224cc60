"""Models from files: published ones by their keys and shapes, converted ones by what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from disa_framework.hub.checkpoint import apply_weights, load_into, misfit, read_checkpoint
from disa_framework.hub.published import PUBLISHED
from disa_framework.hub.reading import some
from disa_framework.models.base import ARDiffusionModel
from disa_framework.runtime.products import use_fast_products

_PACKAGE = "disa_framework."
_TELL = "say which model it is: disa-convert --model CONFIG, load_model(path, model=…)"


def load_model(path: str | Path, model: ARDiffusionModel | None = None, **options: Any) -> ARDiffusionModel:
    """The model in a file, ready to draw: in evaluation mode, on the CPU, in the precision of the file.

    Args:
        path: a converted file, any file of a published system, `fashion/mar` and so on for what comes with the package,
            or `hf:user/name` and `hf:user/name@revision` for a repository of Hugging Face.
        model: takes the weights, with its own device and precision; needed for files of other kinds.
        options: arguments of the model that a file cannot know, such as Harmon's `tokenizer` and `image_size`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, does not say what it is, or does not fit the model.
    """
    if model is None:
        checkpoint = read_checkpoint(path)
        described = checkpoint.model or PUBLISHED[recognize(checkpoint.weights, path)].model_with(checkpoint.options)
        built = build(described["class_path"], {**described["init_args"], **options})
        if not isinstance(built, ARDiffusionModel):
            raise ValueError(f"{path} holds no model that draws: give it to {described['class_path']}(weights=…)")
        for name, parameter in built.named_parameters():
            if name in checkpoint.weights and checkpoint.weights[name].is_floating_point():
                parameter.data = torch.empty_like(parameter, dtype=checkpoint.weights[name].dtype)
        model = built
        # Copied, not taken as they lie in the file: how numbers are rounded depends on where they begin in memory.
        apply_weights(model, checkpoint.weights, path)
    else:
        load_into(model, path)
    use_fast_products(model)
    return model.eval()


def recognize(weights: Mapping[str, Tensor], source: str | Path) -> str:
    """The name of the published model that has these keys and shapes.

    Raises:
        ValueError: saying what differs from the nearest one.
    """
    candidates = [name for name, published in PUBLISHED.items() if published.sign and published.sign in weights]
    if not candidates:
        raise ValueError(f"{source} is of no published model, its keys are {some(list(weights))}; {_TELL}")
    differences = {}
    for name in candidates:
        constructor, prefix = PUBLISHED[name].sized_by or (PUBLISHED[name].constructor, "")
        own = blank(f"{_PACKAGE}{constructor}", {}).state_dict()
        part = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
        difference = misfit(own, part)
        if not difference:
            return name
        alike = sum(t.shape == own[key].shape for key, t in part.items() if key in own)
        differences[name] = (alike / len(own), difference)
    nearest = max(differences, key=lambda name: differences[name][0])
    raise ValueError(
        f"{source} is like {nearest}, but {differences[nearest][1]}. It is damaged, or of another size; {_TELL}"
    )


def build(class_path: str, init_args: Mapping[str, Any]) -> nn.Module:
    """A model of this package whose parameters are allocated, but hold nothing yet; its buffers are computed.

    Raises:
        ValueError: it is not one of this package's models, or does not take these arguments.
    """
    constructor = _constructor(class_path)
    try:
        with torch.random.fork_rng(devices=[]), _Unfilled():
            return constructor(**init_args)
    except (AttributeError, TypeError) as error:  # as which arguments end that are no plain values
        raise ValueError(
            f"{class_path} does not take {dict(init_args)}: {error}; build it yourself, load_model(path, model=…)"
        ) from error


def blank(class_path: str, init_args: Mapping[str, Any]) -> nn.Module:
    """What `build` builds, in keys and shapes alone; of an autoencoder, which keeps its network to itself, that."""
    with torch.device("meta"):
        model = build(class_path, init_args)
    return getattr(model, "network", model)


def _constructor(class_path: str) -> Callable[..., nn.Module]:
    """What a file may name: a model or tokenizer of this package, or one of its constructors of published sizes."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name) if class_path.startswith(_PACKAGE) else None
    except (ImportError, AttributeError):
        found = None
    if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(_PACKAGE):
        return found
    if callable(found) and class_path in {f"{_PACKAGE}{name}" for known in PUBLISHED.values() for name in known.makers}:
        return found
    raise ValueError(f"{class_path} is no model of disa_framework: build it yourself, load_model(path, model=…)")


class _Unfilled(TorchFunctionMode):
    """Leaves out the filling of parameters, so that a model which is about to be loaded takes neither time nor memory.

    Unlike on the meta device, what is computed when a model is made, such as its tables, is there.
    """

    # By name, since transformers puts its own in the place of torch's: kaiming_uniform_, trunc_normal_ and so on.
    _FILLS = ("uniform_", "normal_", "constant_", "fill_", "zero_")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        fills = getattr(func, "__name__", "").endswith(self._FILLS)
        return target if fills and isinstance(target, nn.Parameter) else func(*args, **kwargs)
