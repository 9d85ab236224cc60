"""Where in a file's content the weights are: averaged ones first, without the prefixes of what wrapped the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from disa_framework.hub.reading import Weights, some

_USUAL = ("state_dict", "model_state_dict", "model", "module", "params", "weights", "network", "net", "generator")
_PLAIN = ("model", "module", "network", "net", "generator", "online_model")  # beside averages in one state dict
_AVERAGED = {"ema", "avg", "average", "averaged", "swa", "shadow"}
_COUNTERS = {"decay", "num_updates", "n_averaged", "step", "initted"}  # of what averages
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIXES = ("module.", "_orig_mod.", "model._orig_mod.")  # of all names
_MODEL = "model."
TIED = ("llm.lm_head.weight", "llm.model.embed_tokens.weight")
"""Names of one tensor of Harmon; files hold one of them, or both."""


def find_weights(content: Any, path: Path) -> tuple[str, Weights]:
    """The layout of a file's content in words, and the weights.

    Averaged weights are taken where there are both: those under a name with `ema` or the like, as a state dict or as a
    list in the order of the others. A Lightning checkpoint of `EMAWeightAveraging` has them in its `state_dict`.

    Raises:
        ValueError: there are none, or several and nothing tells which are meant.
    """
    layers = {"": content} if _is_state(content) else _layers(content, path)
    if not layers:
        raise ValueError(f"{path} holds no weights: expected a state dict, or one under {', '.join(_USUAL)} or ema")
    name = _chosen(layers, path)
    averaged = _is_average(name)
    state = _named(layers, name, path)
    if within := _average_within(state):
        return f"averaged weights of {name or 'a state dict'}", within
    own = {key.removeprefix(_MODEL): t for key, t in state.items() if key.startswith(_MODEL)}
    if name == "state_dict" and own:  # the Lightning module keeps the model beside its tokenizer
        words = ", averaged weights" if "current_model_state" in content else ""
        return f"checkpoint of disa-fit{words}", {_WRAPPERS.sub("", key): t for key, t in own.items()}
    words = f"{'averaged ' if averaged else ''}weights under {name}" if name else "state dict"
    return words, _unwrapped(state)


def split(state: Weights) -> tuple[Weights, Weights]:
    """The model's weights, and those of an autoencoder beside them; what neither needs is left out."""
    if "mar.fake_latent" in state:  # Harmon, and UniPic-1, which sees with siglip2
        autoencoder = {k.removeprefix("vae."): t for k, t in state.items() if k.startswith("vae.")}
        tied = {TIED[0]: state[TIED[1]]} if TIED[1] in state else {}
        beside = ("vae.", "siglip2.", "siglip2_proj.")
        return tied | {k: t for k, t in state.items() if not k.startswith(beside)}, autoencoder
    if "pos_for_diff.weight" in state:  # SphereAR, whose autoencoder this package has not
        return {k: t for k, t in state.items() if not k.startswith("vae.")}, {}
    if "quant_conv.weight" in state:  # an autoencoder of latent diffusion, whose discriminator is in its loss
        return {k: t for k, t in state.items() if not k.startswith("loss.")}, {}
    return state, {}


def _layers(content: Any, path: Path, outermost: bool = True) -> dict[str, Weights | list[Tensor]]:
    """What may be meant, by name; of what lies a layer deeper, the choice there."""
    found: dict[str, Weights | list[Tensor]] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        known = name in _USUAL or _is_average(name)
        if _is_state(value) or (known and _is_list(value)):
            found[str(name)] = value
        elif known and outermost and (inner := _layers(value, path, outermost=False)):
            found[name] = inner[_chosen(inner, path)]
    return found


def _chosen(layers: Mapping[str, object], path: Path) -> str:
    """The name of what is meant: averages before all others, these in the order of their usual names."""
    averaged, usual = [name for name in layers if _is_average(name)], [name for name in _USUAL if name in layers]
    if len(averaged) > 1 or not (averaged or usual or len(layers) == 1):
        raise ValueError(f"{path} holds several models, {some(averaged or list(layers))}: save one of them alone")
    return (averaged or usual or list(layers))[0]


def _named(layers: Mapping[str, Weights | list[Tensor]], name: str, path: Path) -> Weights:
    """The state dict of that name; a list has the names of the weights that are not averaged."""
    chosen = layers[name]
    if isinstance(chosen, Mapping):
        return chosen
    names = next((layer for layer in (layers.get(other) for other in _USUAL) if isinstance(layer, Mapping)), {})
    if [t.shape for t in chosen] != [t.shape for t in names.values()]:
        raise ValueError(
            f"{path} holds a list of {len(chosen)} tensors under {name} that does not fit the {len(names)} names "
            "beside it: save it as a state dict"
        )
    return dict(zip(names, chosen, strict=True))


def _unwrapped(state: Weights) -> Weights:
    """Without the prefixes that PyTorch's wrappers of a model give all names."""
    rest = {name: t for name, t in state.items() if name not in _COUNTERS}
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in rest)), ""):
        state = rest = {name.removeprefix(prefix): t for name, t in rest.items()}
    return {_WRAPPERS.sub("", name): t for name, t in state.items()}


def _average_within(state: Weights) -> Weights:
    """Of `model_ema.…` beside `model.…` in one state dict the former, with names of the latter; else nothing."""
    parts: dict[str, Weights] = {}
    for name, t in state.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = t
    for first in filter(_is_average, parts):
        # Latent diffusion leaves the dots out, and the buffers.
        averages = {rest.replace(".", ""): t for rest, t in parts[first].items() if rest not in _COUNTERS}
        for other in (parts[name] for name in _PLAIN if name in parts):
            if averages and averages.keys() <= {rest.replace(".", "") for rest in other}:
                return {rest: averages.get(rest.replace(".", ""), t) for rest, t in other.items()}
    return {}


def _is_average(name: object) -> bool:
    """Whether a word of a name says so: `model_ema`, `paramsEMA`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) if isinstance(name, str) else ()
    return not _AVERAGED.isdisjoint(word.lower() for word in words)


def _is_state(value: object) -> TypeGuard[Weights]:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in value.items())
        and not value.keys() <= _COUNTERS
    )


def _is_list(value: object) -> TypeGuard[list[Tensor]]:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(t, Tensor) for t in value)
