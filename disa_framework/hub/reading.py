"""Files of weights: which one a folder has, of what kind it is, and its content, read without running code in it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from disa_framework.files import shipped
from disa_framework.hub.repository import HUB, repository

Weights = dict[str, Tensor]
"""A state dict."""

METADATA = "disa_framework"
"""Under this name a converted file says what it holds."""
FORMAT = 1
"""Of what it says."""

_USUAL = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin", "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model.safetensors", "last.ckpt",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
_GATHERED_BY = {
    ".metadata": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth",  # FSDP
    "zero_to_fp32.py": "python {path}/zero_to_fp32.py {path} weights",  # DeepSpeed
}
_OTHER_KINDS = {
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body|title|meta|script|style|div|center|h1|error)[\s>/]": (
        "a web page: look at it in a browser, and fetch the file itself"
    ),
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    rb"(\.\./|\.git/)*.?annex/objects/": "a pointer of git-annex: fetch the file itself with git annex get",
}
_MOVED = {"disa_framework.models.Autoencoder": "disa_framework.tokenizers.Autoencoder"}  # since files were written
_ZIP = b"PK\x03\x04"  # what a zip archive begins with; its contents are told at its end
_ASKED = re.compile(r"Unsupported (?:global|class|operand).*?(?:GLOBAL )?([\w.]+) was not|GLOBAL ([\w.]+) whose module")
_BESIDE_WEIGHTS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
)  # fmt: skip


class UnreadableError(ValueError):
    """A file cannot be read: the message names it, and says what it is instead of a checkpoint."""


def locate(path: Path) -> Path:
    """The file to begin with: of a folder the one that has a usual name, or the only one that may hold weights; of a
    name such as `fashion/mar` the weights that come with the package, of `hf:user/name` those of a repository.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, or the folder is a checkpoint in parts, one for each process of a training.
    """
    if str(path).startswith(HUB):
        path = repository(path)
    path = Path(os.path.expanduser(path))  # which leaves what is no home as it is
    if path.is_file():
        return path
    if not path.exists() and (known := shipped(path, ".safetensors")):
        return known
    if programs := [program for name, program in _GATHERED_BY.items() if (path / name).exists()]:
        raise ValueError(f"{path} is a sharded checkpoint: gather it with {programs[0].format(path=path)}")
    usual = [path / name for name in _USUAL if (path / name).exists()]
    others = sorted(entry for entry in path.iterdir() if entry.suffix in _SUFFIXES) if path.is_dir() else []
    if not usual and len(others) > 1:
        raise ValueError(f"{path} holds {some([entry.name for entry in others])}: give one of them")
    if not (usual or others):
        raise FileNotFoundError(
            f"no checkpoint at {path}: train one with disa-fit, fetch one with disa-download, or give another path"
        )
    return locate((usual or others)[0])


def read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Content of a file, and `class_path` and `init_args` of its model where it is a converted one.

    What the file begins with tells its kind, whatever it is called. Large files are mapped, not read.

    Raises:
        FileNotFoundError: a shard that the file names is not there.
        UnreadableError: the file is something else, is damaged, or wants code to be run.
    """
    try:
        if path.suffix == ".json":
            return _read_shards(path), None
        with path.open("rb") as file:
            head = file.read(256)
        if kind := instead(head):
            raise UnreadableError(f"{path} is no checkpoint but {kind}")
        if head.startswith(_ZIP):
            _check_archive(path)
        elif path.suffix.lower() == ".safetensors" or _is_safetensors(path, head):
            return _read_safetensors(path)
        with torch.serialization.safe_globals([_stand_in(name) for name in _BESIDE_WEIGHTS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(_ZIP)), None
    except (FileNotFoundError, PermissionError, UnreadableError):
        raise
    except Exception as error:  # what is not a pickle makes the unpickler raise all kinds, of OSError too
        raise UnreadableError(f"{path} {_why_not(error)}") from error


def instead(head: bytes) -> str:
    """What has come instead of a file that begins so: a web page, or a pointer to the file; empty for others."""
    return next((what for sign, what in _OTHER_KINDS.items() if re.match(sign, head)), "")


def some(names: list[str], shown: int = 4) -> str:
    """The first of many names."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _check_archive(path: Path) -> None:
    """That a zip archive is whole, and one that `torch.save` wrote."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut short, fetch or copy it again")
    with zipfile.ZipFile(path) as archive:
        files = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in files:
        raise UnreadableError(
            f"{path} is no checkpoint but a TorchScript program, and nothing that is in a file is run: where you trust "
            "it, save its weights alone, torch.save(torch.jit.load(…).state_dict(), …)"
        )
    if "data.pkl" not in files:
        raise UnreadableError(f"{path} is no checkpoint but an archive of {some(files)}: unpack it, give what is in it")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file begins with the length of a header in JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, Any] | None]:
    with safe_open(path, framework="pt") as tensors:
        metadata = tensors.metadata() or {}
        model = _described(metadata[METADATA]) if METADATA in metadata else None
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, model  # noqa: SIM118


def _read_shards(index: Path) -> Weights:
    """The weights of all shards that an index of Hugging Face names."""
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    weights: Weights = {}
    for name in sorted(set(places.values())):
        shard = index.with_name(name)  # which takes no path, so that an index names files of its folder alone
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not there: fetch the whole folder")
        weights |= read(shard)[0]
    if lost := sorted(places.keys() - weights.keys()):
        raise ValueError(f"its files lack {some(lost)}")
    return weights


def _described(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if content["format"] > FORMAT:
        raise ValueError(f"it is of format {content['format']}, from a newer version of disa_framework")
    path = str(content["class_path"])
    return {"class_path": _MOVED.get(path, path), "init_args": dict(content["init_args"])}


class _Ignored:
    """Stands in for what published checkpoints hold beside tensors, such as the options of a training run."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(name: str) -> type[_Ignored]:
    """A class that the unpickler takes for the one of that name: nothing of the real one is made or run."""
    module, _, own = name.rpartition(".")
    return type(own, (_Ignored,), {"__module__": module})


def _why_not(error: Exception) -> str:
    """Why a file cannot be read."""
    if asked := _ASKED.search(str(error)):
        return (
            f"asks for {asked[1] or asked[2]}, and nothing that a file names is run: where you trust it, load it "
            "yourself and save the weights alone, torch.save(model.state_dict(), …)"
        )
    reason = next(iter(str(error).splitlines()), "")
    if "weights_only" in reason:  # PyTorch's advice is to run what is in the file
        reason = "no tensors that PyTorch can read"
    return f"is damaged or not a checkpoint: {reason if ' ' in reason else f'{type(error).__name__} {reason}'}"
