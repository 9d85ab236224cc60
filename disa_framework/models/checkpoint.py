"""Loading weights from files, without running code that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_LAYERS = ("model_ema", "state_dict", "model")
_PREFIX = "model."


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a model, from `.safetensors`, a Lightning checkpoint or a published `.pth`.

    Averaged weights are taken where a file holds both: `model_ema` of a published checkpoint; a Lightning
    checkpoint written with `EMAWeightAveraging` has them in its `state_dict`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights, is damaged, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train one with disa-fit, or give another path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except OSError:
        raise
    except Exception as error:  # what is not a pickle makes the unpickler raise all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or not a checkpoint: {reason}") from error
    state = _state_dict(content, path)
    if broken := [name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"{path} holds NaN or infinite values in {_some(broken)}: training diverged")
    return state


def apply_weights(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Loads a state dict whose keys and shapes have to be exactly the model's.

    Raises:
        ValueError: naming the keys and shapes that differ.
    """
    own = model.state_dict()
    problems = []
    if missing := [k for k in own if k not in state]:
        problems.append(f"lacks {_some(missing)}")
    if unknown := [k for k in state if k not in own]:
        problems.append(f"has {_some(unknown)}, which the model has not")
    if shapes := [
        f"{k} {list(state[k].shape)} for {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]:
        problems.append(f"has other shapes: {_some(shapes)}")
    if problems:
        raise ValueError(
            f"{source} does not fit the {type(model).__name__} of the configuration: it {'; it '.join(problems)}. "
            "Give the configuration that the checkpoint was trained with."
        )
    model.load_state_dict(state)


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    layer = next((k for k in _LAYERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
    state = content[layer] if layer else content
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path} holds no weights: expected a state dict, or one under {', '.join(_LAYERS)}")
    if layer == "state_dict":
        # The Lightning module keeps the model beside its tokenizer.
        return {k.removeprefix(_PREFIX): t for k, t in state.items() if k.startswith(_PREFIX)}
    return state


def _some(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
