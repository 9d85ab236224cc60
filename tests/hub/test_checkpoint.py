"""Weights load from every kind of file that holds them, and a file that does not says what is wrong."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import resource
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from disa_framework.hub.checkpoint import apply_weights, load_weights, misfit, read_checkpoint, write_checkpoint

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

OPTIONS = argparse.Namespace(lr=np.float64(0.1), output_dir=Path("out"), betas=(0.9, 0.95))
LIGHTNING = {**prefixed("model.", state()), **prefixed("tokenizer.model.", state(2.0))}
RAW, LIST, ONE = state(2.0), list(state().values()), torch.ones(1)

LAYOUTS: dict[str, tuple[Any, str]] = {
    "plain": (state(), "state dict"),
    "parameters": ({k: nn.Parameter(t) for k, t in state().items()}, "state dict"),
    "published": ({"model": state(), "optimizer": {"lr": 0.1}, "epoch": 3}, "weights under model"),
    "published with averages": (
        {"model": RAW, "model_ema": state(), "args": OPTIONS, "rng": np.random.get_state()},
        "averaged weights under model_ema",
    ),
    "latent diffusion": ({"state_dict": state(), "epoch": 3}, "weights under state_dict"),
    "lightning": ({"state_dict": LIGHTNING, "global_step": 7}, "checkpoint of disa-fit$"),
    "lightning with averages": (
        {"state_dict": LIGHTNING, "current_model_state": prefixed("model.", state(3.0)),
         "averaging_state": {"n_averaged": ONE}},
        "checkpoint of disa-fit, averaged weights",
    ),
    # Averages under the names that others give them.
    "ema": ({"model": RAW, "ema": state(), "opt": {}}, "averaged weights under ema"),
    "ema alone": ({"ema": state(), "ema_decay": 0.999}, "averaged weights under ema"),
    "timm": ({"state_dict": RAW, "state_dict_ema": state()}, "averaged"),
    "basic": ({"params": RAW, "params_ema": state()}, "averaged"),
    "camel case": ({"model": RAW, "modelEMA": state()}, "averaged"),
    "shadow": ({"model": RAW, "ema": {"decay": 0.9, "shadow": state()}}, "averaged"),
    "list": ({"model": RAW, "model_ema": LIST}, "averaged"),
    "list of torch_ema": ({"net": RAW, "ema": {"decay": 0.9, "shadow_params": LIST}}, "averaged"),
    "averaged model": ({"model": RAW, "ema": {"n_averaged": ONE, **prefixed("module.", state())}}, "averaged"),
    "side by side": ({**prefixed("online_model.", RAW), **prefixed("ema_model.", state()), "step": ONE}, "averaged"),
    "counters alone": ({"model": state(), "ema": {"decay": ONE}}, "weights under model"),
    # One set of weights under any name, and what wraps a model.
    "module": ({"module": state()}, "weights under module"),
    "any name": ({"resnet": state(), "epoch": 3}, "weights under resnet"),
    "deeper": ({"model": {"state_dict": state(), "step": 3}}, "weights under model"),
    "distributed": (prefixed("module.", state()), "state dict"),
    "compiled": (prefixed("_orig_mod.", state()), "state dict"),
    "both": ({"model": prefixed("module._orig_mod.", state())}, "weights under model"),
    "lightning compiled": ({"state_dict": prefixed("model._orig_mod.", state())}, "checkpoint of disa-fit"),
    "lightning compiled, alone": (prefixed("model._orig_mod.", state()), "state dict"),
    "sharded and checkpointed": (prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module.", state()), "state dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_load_from_each_layout(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    content, layout = LAYOUTS[name]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(load_weights(path), state())
    assert re.match(layout, read_checkpoint(path).layout)


def test_averages_beside_a_model_have_its_names(tmp_path: Path) -> None:
    """As latent diffusion writes them: without dots, and without buffers."""
    raw = {"weight": torch.zeros(2), "inner.bias": torch.zeros(2), "inner.table": torch.ones(3)}
    averages = {"weight": torch.ones(2), "innerbias": torch.ones(2), "decay": torch.tensor(0.9)}
    torch.save({"state_dict": {**prefixed("model.", raw), **prefixed("model_ema.", averages)}}, tmp_path / "w.ckpt")
    want = {"weight": torch.ones(2), "inner.bias": torch.ones(2), "inner.table": torch.ones(3)}
    assert same(load_weights(tmp_path / "w.ckpt"), want)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema_fast": state(), "ema_slow": state(), "model": state()}, "several models, ema_fast, ema_slow"),
        ({"student": state(), "teacher": state()}, "several models, student, teacher"),
        ({"model": state(), "ema": LIST[:1]}, "list of 1 tensors under ema that does not fit the 2"),
        ({"model": state(), "ema": [torch.ones(7), torch.ones(2)]}, "list of 2 tensors"),
        ({"ema": LIST}, "list of 2 tensors under ema that does not fit the 0"),
    ],
    ids=str,
)
def test_what_cannot_be_told_apart_is_not_guessed(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth holds (a )?{message}"):
        load_weights(tmp_path / "w.pth")


def save_shards(folder: Path, kind: str) -> None:
    """A folder of Hugging Face: `bias` and `weight` in files of their own."""
    suffix = {"model.safetensors": "safetensors", "pytorch_model.bin": "bin"}[kind]
    places = {name: f"part-{i}.{suffix}" for i, name in enumerate(state())}
    for name, file in places.items():
        (save_file if suffix == "safetensors" else torch.save)({name: state()[name]}, folder / file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_weights_load_from_a_folder_of_hugging_face(kind: str, tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for folder in (whole, shards):
        folder.mkdir()
    (save_file if kind.endswith("s") else torch.save)(state(), whole / kind)
    save_shards(shards, kind)
    for path in (whole, shards, shards / f"{kind}.index.json"):
        assert same(load_weights(path), state())


@pytest.mark.parametrize("damage", ["no shard", "no key", "outside"])
def test_a_folder_that_is_not_whole_says_what_it_lacks(damage: str, tmp_path: Path) -> None:
    save_shards(tmp_path, "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    if damage == "no shard":
        (tmp_path / "part-1.safetensors").unlink()
    places = json.loads(index.read_text())["weight_map"]
    places |= {"no key": {"gain": "part-0.safetensors"}, "outside": {"bias": "../bias.safetensors"}}.get(damage, {})
    index.write_text(json.dumps({"weight_map": places}))
    message = {"no shard": "names part-1.safetensors, which is not there", "no key": "lack gain", "outside": "damaged"}
    with pytest.raises((ValueError, FileNotFoundError), match=message[damage]):
        load_weights(tmp_path)


FOLDERS = (
    "last.ckpt", "diffusion_pytorch_model.safetensors", "model.fp16.safetensors", "only.pth", "pytorch_model.bin",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_load_from_a_folder_with_one_file_of_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: mar")
    (save_file if name.endswith("s") else torch.save)(state(), folder / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (folder, folder / name, "~/folder", f"~/folder/{name}"):
        assert same(load_weights(path), state())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([".metadata", "__0_0.distcp"], r"is a sharded checkpoint: .* dcp_to_torch"),
        (["last.ckpt/.metadata", "config.yaml"], r"last\.ckpt is a sharded checkpoint"),
        (["zero_to_fp32.py", "latest"], "is a sharded checkpoint: .*zero_to_fp32"),
        (["a.ckpt", "b.ckpt"], r"holds a\.ckpt, b\.ckpt: give one"),
    ],
)
def test_another_kind_of_folder_says_what_it_is(files: list[str], message: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path)


def test_harmon_and_its_autoencoder_are_told_apart(tmp_path: Path) -> None:
    embedding = torch.rand(3, 2)
    model = {"mar.fake_latent": torch.ones(1), "llm.model.embed_tokens.weight": embedding}
    save_file({**model, **prefixed("vae.", state())}, tmp_path / "harmon.safetensors")
    found = read_checkpoint(tmp_path / "harmon.safetensors")
    assert same(found.weights, {**model, "llm.lm_head.weight": embedding})  # which is tied
    assert same(found.autoencoder, state())


def test_what_unipic_sees_with_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    weights = {"mar.fake_latent": torch.ones(1), "siglip3.weight": torch.ones(1)}
    eyes = {"siglip2.vision_model.head.probe": torch.ones(2), "siglip2_proj.0.weight": torch.ones(2)}
    torch.save({**weights, **eyes, **prefixed("vae.", state())}, tmp_path / "pytorch_model.bin")
    found = read_checkpoint(tmp_path)
    assert same(found.weights, weights) and same(found.autoencoder, state())
    assert "it has siglip3.weight [1], which the model has not" in misfit({"mar.fake_latent": torch.ones(1)}, weights)


def test_an_autoencoder_is_read_without_its_discriminator(tmp_path: Path) -> None:
    network = {"quant_conv.weight": torch.ones(1), "encoder.conv_in.weight": torch.ones(1)}
    torch.save({"state_dict": {**network, "loss.logvar": torch.ones(1)}}, tmp_path / "vae.ckpt")
    assert same(load_weights(tmp_path / "vae.ckpt"), network)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.pth", "w"])
def test_weights_load_from_safetensors_by_any_name(name: str, tmp_path: Path) -> None:
    save_file(state(), tmp_path / name)
    assert same(load_weights(tmp_path / name), state())
    assert same(load_weights(str(tmp_path / name)), state())


def test_applied_weights_are_those_of_the_file() -> None:
    model, other = linear(), state()
    apply_weights(model, other, "file.pth")
    assert same(model.state_dict(), other)


# --- what is written --------------------------------------------------------------------------------------

DESCRIBED = {"class_path": "disa_framework.models.MAR", "init_args": {"patch_size": 2}}


def test_a_converted_file_holds_the_weights_and_says_of_which_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = {"half": torch.rand(4, 2).half().T, "whole": torch.arange(3), "parameter": nn.Parameter(torch.rand(2))}
    write_checkpoint(path, weights, DESCRIBED)
    found = read_checkpoint(path)
    assert same(found.weights, weights) and found.model == DESCRIBED and found.layout == "converted file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tied_weight_is_written_once(tmp_path: Path) -> None:
    weights = {"llm.model.embed_tokens.weight": torch.rand(100, 100), "mar.fake_latent": torch.ones(1)}
    weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"]
    write_checkpoint(tmp_path / "harmon.safetensors", weights, DESCRIBED)
    assert (tmp_path / "harmon.safetensors").stat().st_size < 45_000
    assert same(load_weights(tmp_path / "harmon.safetensors"), weights)


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    whole, path = torch.rand(4, 3), tmp_path / "m.safetensors"
    weights = {"whole": whole, "same": whole, "view": whole.T, "row": whole[0], "rest": whole[1:], "one": torch.ones(1)}
    write_checkpoint(path, weights, DESCRIBED)
    assert same(load_weights(path), weights)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # not the owner's alone


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, state(), DESCRIBED)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
            write_checkpoint(path, {"large": torch.zeros(10_000)}, DESCRIBED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(load_weights(path), state()) and len(list(tmp_path.iterdir())) == 1


def test_a_file_of_a_newer_format_says_so(tmp_path: Path) -> None:
    described = {"disa_framework": json.dumps({"format": 99, **DESCRIBED})}
    save_file(state(), tmp_path / "model.safetensors", described)
    with pytest.raises(ValueError, match="format 99, from a newer version"):
        load_weights(tmp_path / "model.safetensors")


# --- what does not load ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path, "~nobody.of.this.name/x.ckpt"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}: train one with disa-fit, fetch one"):
            load_weights(path)


def save_pth(path: Path) -> None:
    torch.save(state(), path)


def save_legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def save_safe(path: Path) -> None:
    save_file(state(), path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("name", "save"), [("w.safetensors", save_safe), ("w.pth", save_pth), ("w.ckpt", save_legacy)])
def test_a_truncated_file_is_called_damaged(
    name: str, save: Callable[[Path], None], share: float, tmp_path: Path
) -> None:
    path = tmp_path / name
    save(path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match=rf"{name} is damaged or not a checkpoint: \S"):
        load_weights(path)


def saved(write: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "text": (b"hello world", "is damaged or not a checkpoint"),
    "yaml": (b"a: 1\nb: 2\n", "is damaged or not a checkpoint"),
    "json": (b'{"error": "Invalid credentials"}', "is damaged or not a checkpoint"),
    "pickle": (pickle.dumps([1, 2], protocol=2), "is damaged or not a checkpoint"),
    "page": (b"<!DOCTYPE html><html>Quota exceeded</html>", "is no checkpoint but a web page"),
    "page with a mark": (b"\xef\xbb\xbf\n<html><body>", "is no checkpoint but a web page"),
    "answer of a store": (b'<?xml version="1.0"?><Error>', "is no checkpoint but a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n", "a pointer of Git LFS"),
    "pointer of git-annex": (b"/annex/objects/SHA256E-s8--00.pth", "a pointer of git-annex"),
    "arrays": (saved(partial(np.savez, a=np.ones(2))), r"is no checkpoint but an archive of a\.npy"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_another_kind_of_file_says_what_it_is(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[kind][0])
    with pytest.raises(ValueError, match=KINDS[kind][1]) as refused:
        load_weights(tmp_path / name)
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_program_is_called_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where scripts are deprecated
        torch.jit.script(linear()).save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is no checkpoint but a TorchScript program"):
        load_weights(tmp_path / "w.pt")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


class Command:
    """Runs a program when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(("kind", "name"), [(Bomb, "getattr"), (Command, r"(posix|nt)\.system")])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_and_never_run(kind: type[Any], name: str, zipped: bool, tmp_path: Path) -> None:
    path, crater = tmp_path / "bomb.ckpt", tmp_path / "crater"
    torch.save({**state(), "extra": kind(crater)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=rf"bomb\.ckpt asks for {name}, and nothing that a file names is run"
    ) as refused:
        load_weights(path)
    assert not crater.exists() and "weights_only" not in str(refused.value)
    torch.load(path, weights_only=False)
    assert crater.exists()  # the bomb was live


DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"model": DEEP}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}},
        {"epoch": 3},
        [state()],
        torch.ones(3),
        {"model": {"weight": "none"}},
        {1: torch.ones(1)},
        {"x": torch.ones(1), b"x": torch.ones(1)},
        DEEP,
    ],
    ids=["empty", "empty layer", "number", "list", "tensor", "string", "no name", "bytes", "deep"],
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


ODD: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "sparse by rows": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.ones(2, device="meta"),
    "complex": lambda: torch.ones(2) * 1j,
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "of 8 bits": lambda: torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # of what is deprecated, or a prototype
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_other_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save({**state(), "odd": ODD[kind]()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds odd as something else than plain numbers"):
        load_weights(tmp_path / "w.pth")


def safetensors(header: bytes, content: bytes = bytes(16), length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + content


def tensor_of(shape: list[int], end: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", length=2**62),
        safetensors(b'{"a": 1}', length=99_000_000),
        safetensors(tensor_of([2**44], 2**46)),
        safetensors(tensor_of([2**44], 16)),
        safetensors(tensor_of([-4], 16)),
        safetensors(tensor_of([1, 4], 8)),
        safetensors(b'{"a":' * 100_000),
        safetensors(json.dumps({"__metadata__": {"disa_framework": "[" * 100_000}}).encode(), b""),
    ],
    ids=["header", "long header", "shape and place", "shape", "negative", "place", "deep", "deep description"],
)
def test_a_header_that_lies_is_called_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*w\.safetensors is damaged or not a checkpoint: [^\n]+$"):
        load_weights(tmp_path / "w.safetensors")


def test_a_mask_of_minus_infinity_is_no_divergence(tmp_path: Path) -> None:
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    save_file({"mask": mask}, tmp_path / "w.safetensors")
    assert same(load_weights(tmp_path / "w.safetensors"), {"mask": mask})


MISFITS: dict[str, tuple[State, str]] = {
    "another size": (
        {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
        r"has other shapes: weight \[2, 4\] for \[2, 3\]",
    ),
    "too few": ({"weight": torch.zeros(2, 3)}, r"it lacks bias \[2\]"),
    "too many": ({**state(), "gain": torch.zeros(1)}, r"it has gain \[1\], which the model has not"),
    "all at once": (
        {"weight": torch.zeros(3), "gain": torch.zeros(1)},
        r"it lacks bias \[2\]; it has gain \[1\], which the model has not; it has other shapes: weight \[3\] for",
    ),
    "whole numbers": (
        {k: t.int() for k, t in state().items()},
        r"other kinds of numbers: weight torch\.int32, bias torch\.int32",
    ),
    "many of them": (
        {**state(), **{f"x{i}": torch.zeros(1) for i in range(9)}},
        r"has x0 \[1\], x1 \[1\], x2 \[1\], x3 \[1\] and 5 more, which",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_named_and_nothing_is_changed(name: str) -> None:
    weights, message = MISFITS[name]
    model = linear()
    with pytest.raises(ValueError, match=rf"^file\.pth does not fit the Linear .*{message}"):
        apply_weights(model, weights, "file.pth")
    assert same(model.state_dict(), linear().state_dict())
