"""Timings as figures, as a table and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from disa_framework.bench.laps import PARTS
from disa_framework.bench.measure import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
_NAME = 40  # characters of a line of a case's name in the picture
_COLUMNS = ("case", "batch", "evaluations", "ms an image", *PARTS, "floor", "over floor", "MiB", "to the first")


def figures(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """All that was measured of each case, times in seconds per image, as JSON can hold it.

    Ratios are those of runs beside each other: `over_floor`, and `to_the_first` case of the same batch size.
    """
    return [_figures(timing, _first(timings, timing)) for timing in timings]


def table(timings: Sequence[Timing]) -> list[list[str]]:
    """The medians, a row a case below the names of the columns."""
    return [list(_COLUMNS), *map(_cells, figures(timings))]


def plot(timings: Sequence[Timing], axes: Axes) -> None:
    """A bar a case, made of its parts, with a mark at its floor."""
    rows = figures(timings)
    names = [textwrap.fill(f"{row['case']}, batch {row['batch_size']}", _NAME) for row in rows]
    left = [0.0] * len(rows)
    for part in PARTS:
        widths = [1e3 * row["parts"][part]["median"] for row in rows]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    marks = [(1e3 * row["floor"]["median"], name) for row, name in zip(rows, names, strict=True) if row["floor"]]
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
    case, module = timing.case, timing.case.module
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "schedule": str(module.schedule),
        "budget": list(module.schedule.budget(module.num_stages)),
        "head_evaluations": module.evaluations(),
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
