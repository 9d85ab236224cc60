"""Repositories of Hugging Face by a name in one word: `hf:user/name`, `hf:user/name@revision`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

HUB = "hf:"
_WANTED = ["*.safetensors", "*.json", "*.yaml"]


def library() -> ModuleType:
    """`huggingface_hub`; a ValueError where it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError("what lies on Hugging Face needs its library: pip install 'disa-framework[all]'") from error
    return huggingface_hub


def reason(error: Exception) -> str:
    """Why the library, or one below it, did not do what was asked, in a line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def repository(name: str | Path) -> Path:
    """The folder with a repository's files, which are fetched unless they are there.

    The library's own environment variables hold: `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`.

    Raises:
        OSError: they cannot be fetched.
        ValueError: `huggingface_hub` is not installed, or the name is none.
    """
    repo, _, revision = str(name).removeprefix(HUB).partition("@")
    if repo.count("/") != 1:
        raise ValueError(f"a repository is named {HUB}user/name or {HUB}user/name@revision, got {name}")
    fetched = library().snapshot_download
    try:
        return Path(fetched(repo, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:  # of several libraries
        raise OSError(f"{name} cannot be fetched: {reason(error)}") from error
