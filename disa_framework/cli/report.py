"""How commands show what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from disa_framework.files import write_atomically


@rank_zero_only
def report(result: dict[str, Any], output: Path | None) -> None:
    """Prints figures with what they were made with, and writes them to a file if there is to be one."""
    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name.ljust(width)}  {value:.6g}" if isinstance(value, float) else f"{name.ljust(width)}  {value}")
    if output:
        write_atomically(output, (json.dumps(result, indent=2) + "\n").encode())


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
