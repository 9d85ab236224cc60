"""How commands show what they found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from disa_framework.files import write_json
from disa_framework.progress import Progress


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def show_figures(figures: dict[str, Any], output: str | Path | None) -> None:
    """Prints figures with their names, one a line, and writes them with what they were made with."""
    shown = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name.ljust(width)}  {value:.6g}" if isinstance(value, float) else f"{name.ljust(width)}  {value}")
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(output), figures)


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A progress bar for several counts, one after the other; a line now and then where there is no terminal."""
    seconds = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(desc=name, delay=0.1, mininterval=seconds) as bar:

        def show(done: int, total: int) -> None:
            if total != bar.total or done < bar.n:
                bar.reset(total)
                bar.delay = 0  # it is shown now, and ends its line when it is closed
            bar.update(done - bar.n)

        yield show
