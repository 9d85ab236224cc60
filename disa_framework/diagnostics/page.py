"""A page in one file: a table, and pictures of a diagnosis or an ablation."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
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
    """A PNG of what is drawn into the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def write_page(path: Path, title: str, table: Sequence[Sequence[str]], pictures: Mapping[str, bytes]) -> None:
    """Writes the page, and beside it each picture as `NAME.png`."""
    body = [f"<h1>{html.escape(title)}</h1>", f"<table>{''.join(map(_line, table))}</table>"]
    for name, data in pictures.items():
        write_atomically(path.with_name(f"{name}.png"), data)
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        body.append(f'<h2>{name}</h2><img src="{source}" alt="{name}">')
    head = f"<!DOCTYPE html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    write_atomically(path, "\n".join([head, *body, ""]).encode())


def _line(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
