"""The folder of a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Folder:
    """Where a search keeps what it finds, and what it measures on the way.

    Args:
        path: is made when something is written; `None` keeps nothing on disk.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._made: dict[str, Any] = {}

    def place(self, name: str) -> Path | None:
        """Where to write a file, if anywhere."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
        return self.path and self.path / name

    def once(self, name: str, make: Callable[[], T], save: Callable[[T, Path], object], load: Callable[[Path], T]) -> T:
        """What is in a file, or is made now; of workers begun together, all take what the first has made.

        Args:
            name: of the file, which says all that decides what is in it.
            make, save, load: the way to it, into the file, and from there.
        """
        if name not in self._made:
            path = self.place(name)
            made = make() if path is None or not path.exists() else None
            if path is not None:
                if made is not None and not path.exists():
                    save(made, path)
                made = load(path)
            self._made[name] = made
        return self._made[name]
