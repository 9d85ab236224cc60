"""Times several ways to draw, in turn, beside their floors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from disa_framework.bench.floor import Floor, Recorder
from disa_framework.bench.laps import Clock, read, split
from disa_framework.models.base import Condition
from disa_framework.models.graphs import GraphRecorder, without_graphs
from disa_framework.module import ARDiffusionModule


@dataclass(frozen=True)
class Case:
    """One way to draw.

    Attributes:
        name: as it is shown.
        module: model, schedule, solver and all else; cases may share a model.
        condition: labels `[B]` or `B` prompts; `None` draws unconditional images.
        batch_size: `B`.
        precision: makes the context in which the module is called.
    """

    name: str
    module: ARDiffusionModule
    condition: Condition | None
    batch_size: int
    precision: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def device(self) -> torch.device:
        """Where it is drawn."""
        return self.module.model.device

    def draw(self) -> None:
        """Draws a batch."""
        with self.precision():
            self.module.draw(self.condition, torch.arange(self.batch_size))

    def split(self, clock: Clock) -> dict[str, float]:
        """Draws a batch, and returns the seconds of each part."""
        with self.precision():
            return split(self.module, self.condition, torch.arange(self.batch_size), clock)


@dataclass(frozen=True)
class Timing:
    """What was measured of a case; lists have an entry a round.

    Attributes:
        case: what was drawn.
        whole: seconds per image.
        parts: seconds per image of each part. Reading the clock costs time, too, so these come from runs of their own
            and are brought to the whole by a common factor.
        floor: seconds per image of the matrix products and attention calls alone; none if there are none.
        peak_memory: bytes, and of a CPU those of the whole process; `None` where the system does not tell.
    """

    case: Case
    whole: list[float]
    parts: dict[str, list[float]]
    floor: list[float]
    peak_memory: int | None


@torch.inference_mode()
def measure(cases: Sequence[Case], *, repeats: int = 5, clock: Clock = time.perf_counter) -> list[Timing]:
    """Times all cases and their floors in turn, so that a slow spell of the machine meets all alike.

    Args:
        cases: what is drawn.
        repeats: rounds, after one that warms up.
        clock: gives seconds.

    Raises:
        ValueError: if there is no case or no round, or a case cannot be drawn.
    """
    if not cases or repeats < 1:
        raise ValueError(f"there must be something to time, and at least 1 round: got {len(cases)} and {repeats}")
    for case in cases:
        case.module.eval()
    peaks = [peak_memory(case.device, case.draw) for case in cases]  # before floors take memory
    graphs = GraphRecorder()
    floors = [_record(case, graphs) for case in cases]
    timings = [Timing(case, [], {}, [], peak) for case, peak in zip(cases, peaks, strict=True)]
    for _ in range(repeats):
        for timing, floor in zip(timings, floors, strict=True):
            _time(timing, floor, clock)
    return timings


def peak_memory(device: torch.device, run: Callable[[], object]) -> int | None:
    """Bytes in use at the height of a run: allocated ones of a GPU, resident ones of a process on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew, see proc(5)
    except OSError:
        run()
        return None
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _record(case: Case, graphs: GraphRecorder) -> Floor:
    """The floor of a case, which has been called once."""
    module = case.module
    weights = chain(module.parameters(), module.buffers())
    with without_graphs(module.model), Recorder(weights) as recorder:
        case.draw()
    floor = Floor(recorder.calls, case.device, graphs)
    floor()
    return floor


def _time(timing: Timing, floor: Floor, clock: Clock) -> None:
    """Adds one round."""
    case = timing.case

    def seconds(run: Callable[[], object]) -> float:
        start = read(clock, case.device)
        run()
        return (read(clock, case.device) - start) / case.batch_size

    whole = seconds(case.draw)
    timing.whole.append(whole)
    if floor.calls:
        timing.floor.append(seconds(floor))
    parts = case.split(clock)
    factor = whole / sum(parts.values())
    for name, spent in parts.items():
        timing.parts.setdefault(name, []).append(spent * factor)
