"""Timings as plain data, as a table and as a picture."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import lightning
import torch

from disa_framework.files import write_atomically, write_json
from disa_framework.measure.cases import PARTS, Timing
from disa_framework.page import picture
from disa_framework.runtime.devices import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
_NAME = 40  # characters of a line of a case's name in the picture
_COLUMNS = (
    "case",
    "batch",
    "evaluations",
    "ms an image",
    *PARTS,
    "over floor",
    "GFLOP",
    "of peak",
    "MiB",
    "to the first",
)


def made_with(timings: Sequence[Timing]) -> dict[str, Any]:
    """On what the times were taken, as plain data."""
    case = timings[0].case
    return {
        "device": name_of(case.device),
        "dtype": str(case.module.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "peak (TFLOP/s)": round(timings[0].peak / 1e12, 3),
        "rounds": len(timings[0].rounds),
        "versions": {
            "torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()
        },
    }  # fmt: skip


def save(folder: Path, timings: Sequence[Timing], about: dict[str, Any]) -> None:
    """Writes bench.json, what is known `about` the timings and all that was measured, and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", {**about, "cases": plain(timings)})
    write_atomically(folder / "bench.png", picture(partial(_plot, timings), height=1.5 + 0.5 * len(timings)))


def plain(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """All that was measured of each case, as plain data; times are seconds per sample.

    Ratios are those of runs beside each other: `over_floor`, and `to_the_first` case of the same batch size.
    """
    firsts = {timing.case.batch_size: timing for timing in reversed(timings)}
    return [_plain(timing, firsts[timing.case.batch_size]) for timing in timings]


def table(timings: Sequence[Timing]) -> list[list[str]]:
    """The medians, a line a case below the names of the columns."""
    return [list(_COLUMNS), *map(_cells, plain(timings))]


def _plain(timing: Timing, first: Timing) -> dict[str, Any]:
    case, sampling = timing.case, timing.case.module.sampling
    whole, floor = timing.seconds("whole"), timing.seconds("floor")
    return {
        "case": case.name,
        "batch_size": case.batch_size,
        "sampling": sampling.dump(),
        "budget": list(sampling.budget),
        "head_evaluations": case.module.evaluations(),
        "seconds": _spread(whole),
        "parts": {part: _spread(timing.seconds(part)) for part in PARTS},
        "floor": _spread(floor),
        "over_floor": _spread(list(map(truediv, whole, floor))),
        "operations": timing.operations,
        "of_peak": _spread([timing.operations / seconds / timing.peak for seconds in whole]),
        "to_the_first": _spread(list(map(truediv, whole, first.seconds("whole")))),
        "peak_memory": timing.peak_memory,
    }


def _cells(found: dict[str, Any]) -> list[str]:
    low, middle, high = (f"{1e3 * found['seconds'][key]:.2f}" for key in ("low", "median", "high"))
    floor, memory = found["floor"], found["peak_memory"]
    return [
        found["case"],
        str(found["batch_size"]),
        str(found["head_evaluations"]),
        f"{middle} ({low} … {high})",
        *(f"{1e3 * found['parts'][part]['median']:.2f}" for part in PARTS),
        f"{found['over_floor']['median']:.2f}" if floor else "–",
        f"{found['operations'] / 1e9:.3g}",
        f"{found['of_peak']['median']:.0%}",
        "–" if memory is None else f"{memory / _MIB:,.0f}",
        f"{found['to_the_first']['median']:.3f}",
    ]


def _plot(timings: Sequence[Timing], axes: Axes) -> None:
    """A bar a case, made of its parts, with a mark at its floor."""
    names = [textwrap.fill(f"{timing.case.name}, batch {timing.case.batch_size}", _NAME) for timing in timings]
    left = [0.0] * len(timings)
    for part in PARTS:
        widths = [1e3 * median(timing.seconds(part)) for timing in timings]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    floors = [(timing.seconds("floor"), name) for timing, name in zip(timings, names, strict=True)]
    marks = [(1e3 * median(floor), name) for floor, name in floors if floor]
    if marks:
        axes.plot(*zip(*marks, strict=True), "k|", markersize=20, label="floor")
    axes.invert_yaxis()
    axes.set(xlabel="ms an image")
    axes.tick_params(axis="y", labelsize="small")
    axes.figure.legend(loc="outside upper center", ncols=len(PARTS) + 1, fontsize="small", markerscale=0.5)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles, if there are values."""
    if not values:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values,) * 3
    return {"median": middle, "low": low, "high": high}
