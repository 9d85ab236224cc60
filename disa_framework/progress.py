"""How long work tells what it has done."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""


def silent(done: int, total: int) -> None:
    """Tells nobody."""
