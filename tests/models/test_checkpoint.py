"""Weights load from every kind of file that holds them, and a file that does not says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from disa_framework.models.checkpoint import apply_weights, load_weights

State = dict[str, Tensor]


def linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(3, 2)


def state(value: float = 1.0) -> State:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def prefixed(prefix: str, weights: State) -> State:
    return {prefix + name: tensor for name, tensor in weights.items()}


# --- what loads -------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Any] = {
    "plain": state(),
    "published": {"model": state(), "optimizer": {"lr": 0.1}, "epoch": 3},
    "published with averages": {"model": state(2.0), "model_ema": state(), "epoch": 3},
    "lightning": {
        "state_dict": {**prefixed("model.", state()), **prefixed("tokenizer.model.", state(2.0))},
        "current_model_state": prefixed("model.", state(3.0)),
        "global_step": 7,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_load_from_each_layout(layout: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout], path, _use_new_zipfile_serialization=zipped)
    assert same(load_weights(path), state())


def test_weights_load_from_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state(), path)
    assert same(load_weights(path), state())
    assert same(load_weights(str(path)), state())


def test_applied_weights_are_those_of_the_file() -> None:
    model, other = linear(), state()
    apply_weights(model, other, "file.pth")
    assert same(model.state_dict(), other)


# --- what does not ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}: train one"):
            load_weights(path)


def save_pth(path: Path) -> None:
    torch.save(state(), path)


def save_legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def save_safe(path: Path) -> None:
    save_file(state(), path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    ("name", "save"), [("w.safetensors", save_safe), ("w.pth", save_pth), ("w.ckpt", save_legacy)]
)
def test_a_truncated_file_is_called_damaged(
    name: str, save: Callable[[Path], None], share: float, tmp_path: Path
) -> None:
    path = tmp_path / name
    save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{name} is damaged or not a checkpoint: \S"):
        load_weights(path)


@pytest.mark.parametrize("text", ["hello world", "a: 1\nb: 2\n", "<html></html>", "{}", "version https://git-lfs"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_text_file_is_called_no_checkpoint(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{name} is damaged or not a checkpoint"):
        load_weights(path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_and_never_run(zipped: bool, tmp_path: Path) -> None:
    path, crater = tmp_path / "bomb.ckpt", tmp_path / "crater"
    torch.save({**state(), "extra": Bomb(crater)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"bomb\.ckpt is damaged or not a checkpoint"):
        load_weights(path)
    assert not crater.exists()
    torch.load(path, weights_only=False)
    assert crater.exists()  # the bomb was live


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {"epoch": 3}, [state()], torch.ones(3), {"model": {"weight": "none"}}],
    ids=["empty", "empty layer", "number", "list", "tensor", "string"],
)
def test_a_file_without_weights_says_what_was_expected(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"w\.pth holds no weights: expected a state dict"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    broken = state()
    broken["bias"][1] = value
    save_file(broken, path)
    with pytest.raises(ValueError, match=r"NaN or infinite values in bias: training diverged"):
        load_weights(path)


MISFITS: dict[str, tuple[State, str]] = {
    "another size": (
        {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
        r"has other shapes: weight \[2, 4\] for \[2, 3\]",
    ),
    "too few": ({"weight": torch.zeros(2, 3)}, "it lacks bias"),
    "too many": ({**state(), "gain": torch.zeros(1)}, "it has gain, which the model has not"),
    "all at once": (
        {"weight": torch.zeros(3), "gain": torch.zeros(1)},
        r"it lacks bias; it has gain, which the model has not; it has other shapes: weight \[3\] for \[2, 3\]",
    ),
    "many of them": (
        {**state(), **{f"x{i}": torch.zeros(1) for i in range(9)}},
        "has x0, x1, x2, x3 and 5 more, which",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_named_and_nothing_is_changed(name: str) -> None:
    weights, message = MISFITS[name]
    model = linear()
    with pytest.raises(ValueError, match=rf"^file\.pth does not fit the Linear .*{message}"):
        apply_weights(model, weights, "file.pth")
    assert same(model.state_dict(), linear().state_dict())
