"""Timings as figures, as a table and as a picture."""

from __future__ import annotations

import json
import platform
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import lightning
import torch

from disa_framework.files import write_atomically
from disa_framework.measure.cases import Timing
from disa_framework.measure.laps import PARTS
from disa_framework.page import picture
from disa_framework.runtime.devices import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
_NAME = 40  # characters of a line of a case's name in the picture
_COLUMNS = ("case", "batch", "evaluations", "ms an image", *PARTS, "floor", "over floor", "MiB", "to the first")


def made_with(timings: Sequence[Timing]) -> dict[str, Any]:
    """On what the times were taken, as JSON can hold it."""
    case, rounds = timings[0].case, len(timings[0].whole)
    return {
        "device": name_of(case.device),
        "dtype": str(case.module.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": {
            "torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()
        },
    }  # fmt: skip


def save(folder: Path, timings: Sequence[Timing], about: dict[str, Any]) -> None:
    """Writes bench.json, what is known `about` the timings and their figures, and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "cases": figures(timings)}
    write_atomically(folder / "bench.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(folder / "bench.png", picture(partial(plot, timings), height=1.5 + 0.5 * len(timings)))


def figures(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """All that was measured of each case, times in seconds per sample, as JSON can hold it.

    Ratios are those of runs beside each other: `over_floor`, and `to_the_first` case of the same batch size.
    """
    return [_figures(timing, _first(timings, timing)) for timing in timings]


def rows(timings: Sequence[Timing]) -> list[list[str]]:
    """The medians, a row a case below the names of the columns."""
    return [list(_COLUMNS), *map(_cells, figures(timings))]


def plot(timings: Sequence[Timing], axes: Axes) -> None:
    """A bar a case, made of its parts, with a mark at its floor."""
    shown = figures(timings)
    names = [textwrap.fill(f"{row['case']}, batch {row['batch_size']}", _NAME) for row in shown]
    left = [0.0] * len(shown)
    for part in PARTS:
        widths = [1e3 * row["parts"][part]["median"] for row in shown]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    marks = [(1e3 * row["floor"]["median"], name) for row, name in zip(shown, names, strict=True) if row["floor"]]
    if marks:
        axes.plot(*zip(*marks, strict=True), "k|", markersize=20, label="floor")
    axes.invert_yaxis()
    axes.set(xlabel="ms an image")
    axes.tick_params(axis="y", labelsize="small")
    axes.figure.legend(loc="outside upper center", ncols=len(PARTS) + 1, fontsize="small", markerscale=0.5)


def _first(timings: Sequence[Timing], timing: Timing) -> Timing:
    """The first case of the same batch size."""
    return next(other for other in timings if other.case.batch_size == timing.case.batch_size)


def _figures(timing: Timing, first: Timing) -> dict[str, Any]:
    case, sampling = timing.case, timing.case.module.sampling
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "sampling": sampling.dump(),
        "budget": list(sampling.budget),
        "head_evaluations": case.module.evaluations(),
        "seconds": _spread(timing.whole),
        "parts": {name: _spread(values) for name, values in timing.parts.items()},
        "floor": _spread(timing.floor) if timing.floor else None,
        "over_floor": _ratio(timing.whole, timing.floor) if timing.floor else None,
        "to_the_first": _ratio(timing.whole, first.whole),
        "peak_memory": timing.peak_memory,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    memory = row["peak_memory"]
    return [
        row["case"],
        str(row["batch_size"]),
        str(row["head_evaluations"]),
        "{median:.2f} ({low:.2f} … {high:.2f})".format(**{k: 1e3 * v for k, v in row["seconds"].items()}),
        *(f"{1e3 * row['parts'][part]['median']:.2f}" for part in PARTS),
        f"{1e3 * row['floor']['median']:.2f}" if row["floor"] else "–",
        f"{row['over_floor']['median']:.2f}" if row["floor"] else "–",
        "–" if memory is None else f"{memory / _MIB:,.0f}",
        f"{row['to_the_first']['median']:.3f}",
    ]


def _ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    return _spread([a / b for a, b in zip(values, others, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values,) * 3
    return {"median": median(values), "low": low, "high": high}
