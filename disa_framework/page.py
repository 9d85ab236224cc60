"""A page in one file: text, tables and pictures."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from disa_framework.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:64em}td,th{padding:.3em .6em;text-align:left}"
    "table{border-collapse:collapse}tr{border-bottom:1px solid #ccc}img{max-width:100%}"
)


def picture(draw: Callable[[Axes], object], height: float = 3.5) -> bytes:
    """A PNG of what is drawn into the axes; no dollar sign begins a formula."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(8, height), layout="constrained"), io.BytesIO()
    with rc_context({"text.parse_math": False}):
        draw(figure.subplots())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that the font lacks, and of names that leave no room
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def paragraph(text: str) -> str:
    """As HTML."""
    return f"<p>{html.escape(text)}</p>"


def table(lines: Sequence[Sequence[str]]) -> str:
    """As HTML; the first line has the headings."""
    cells = [[html.escape(cell) for cell in line] for line in lines]
    return f"<table>{''.join(_line(line, 'td' if i else 'th') for i, line in enumerate(cells))}</table>"


def section(name: str, image: bytes) -> str:
    """A PNG under its name, as HTML."""
    source, name = f"data:image/png;base64,{base64.b64encode(image).decode()}", html.escape(name)
    return f'<h2>{name}</h2><img src="{source}" alt="{name}">'


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Writes the page, of parts that are HTML."""
    name = html.escape(title)
    head = f"<!DOCTYPE html><meta charset=utf-8><title>{name}</title><style>{_STYLE}</style>"
    write_atomically(path, "\n".join([head, f"<h1>{name}</h1>", *body, ""]).encode())


def _line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
