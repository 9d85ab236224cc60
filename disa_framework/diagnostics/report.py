"""What a diagnosis or an ablation leaves in a folder: a table, a page, and its pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from disa_framework import page
from disa_framework.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Sequence[object]]


def write(
    path: Path,
    title: str,
    numbers: Rows,
    lines: Sequence[Sequence[str]],
    notes: Sequence[str],
    pictures: Mapping[str, Callable[[Axes], object]],
    height: float = 3.5,
) -> None:
    """Writes a CSV, a page beside it, and each picture as PNG.

    Args:
        path: of the CSV.
        title: of the page.
        numbers: rows of the CSV, headings first.
        lines: the table of the page.
        notes: below it.
        pictures: what draws each of them, by name.
        height: of a picture, in inches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(numbers)
    write_atomically(path, text.getvalue().encode())
    images = {name: page.picture(draw, height) for name, draw in pictures.items()}
    for name, image in images.items():
        write_atomically(path.with_name(f"{name}.png"), image)
    body = [page.table(lines), *map(page.paragraph, notes), *starmap(page.section, images.items())]
    page.write_page(path.with_suffix(".html"), title, body)
