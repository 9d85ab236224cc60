"""Finding what comes with the package, and writing files that are either whole or absent."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Of configurations, and of weights beside them: of a wheel, of a checkout."""

RECIPES = _PACKAGE / "recipes"
"""Sampling configs that were found for a configuration, in folders with their names."""

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")


def shipped(name: str | Path, suffix: str) -> Path | None:
    """What comes with the package under a name such as `fashion/mar`, if there is such a file."""
    candidates = (folder / f"{name}{suffix}" for folder in CONFIG_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename into it: a reader, or a killed run, never meets half a file.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes plain data as `write_atomically` does, a line for each part."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def remove_leftovers(folder: Path, belongs: Callable[[Path], bool], pattern: str = ".*.tmp") -> None:
    """Removes what killed runs have left of files that they were writing.

    Args:
        folder: is searched.
        belongs: whether a file is one of theirs.
        pattern: of the places that are searched.
    """
    for leftover in folder.glob(pattern):
        if (written := _TEMPORARY.fullmatch(leftover.name)) and belongs(leftover.with_name(written[1])):
            leftover.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Sees that a file can be written in the end, whose folder may be made then.

    Raises:
        OSError: if it cannot.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    place = next(place for place in path.absolute().parents if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PermissionError(f"{place} cannot be written to: choose another place for {path.name}")
