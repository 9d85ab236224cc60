"""How long work tells what it has done."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""


def silent(done: int, total: int) -> None:
    """Tells nobody."""


Bars = Callable[[str], AbstractContextManager[Progress]]
"""Shows how far something with this name is, for as long as it takes."""


def without_bars(name: str) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(silent)
