"""Times several ways to draw, in turn, beside their floors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from disa_framework.measure.floor import Floor, Recorder
from disa_framework.measure.laps import Clock, read, split
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules.text import schedule_from

Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Case:
    """One way to draw.

    Attributes:
        name: as it is shown.
        module: model, sampling config and all else; cases may share a model.
        condition: of `B` samples; `None` draws unconditional ones.
        batch_size: `B`.
        precision: makes the context in which the module is called.
    """

    name: str
    module: ARDiffusionModule
    condition: Condition | None
    batch_size: int
    precision: Context = nullcontext

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
        whole: seconds per sample.
        parts: seconds per sample of each part. Reading the clock costs time, too, so these come from runs of their own
            and are brought to the whole by a common factor.
        floor: seconds per sample of the matrix products and attention calls alone; none if there are none.
        peak_memory: bytes, and of a CPU those of the whole process; `None` where the system does not tell.
    """

    case: Case
    whole: list[float]
    parts: dict[str, list[float]]
    floor: list[float]
    peak_memory: int | None


def variations(sampling: SamplingConfig, schedules: Sequence[str]) -> dict[str, SamplingConfig]:
    """Sampling configs to time side by side, by name; the one that is given if no other is asked for.

    Args:
        sampling: is varied.
        schedules: files (.yaml) of whole sampling configs, or schedules as they print themselves: `Linear(50, 5)`.

    Raises:
        ValueError: there is no such schedule.
        FileNotFoundError: there is no such file.
    """

    def varied(text: str) -> SamplingConfig:
        if text.endswith((".yaml", ".yml")):
            return SamplingConfig.load(text)
        return replace(sampling, schedule=schedule_from(text))

    return {text: varied(text) for text in schedules} or {str(sampling.schedule): sampling}


def placed(module: ARDiffusionModule, trainer: Trainer) -> Context:
    """Brings a module to where Lightning's trainer draws with it, in its precision; the module is changed in place.

    Returns:
        What makes the context in which the module is called.
    """
    trainer.precision_plugin.convert_module(module).to(trainer.strategy.root_device)
    return trainer.precision_plugin.predict_step_context


def on_one_device(options: dict[str, Any]) -> Trainer:
    """A trainer with these options, but for several devices, and quiet."""
    single = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": []}
    return Trainer(**{**options, **single, **quiet})


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
    floors = [_record(case) for case in cases]
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


def _record(case: Case) -> Floor:
    """The floor of a case, which has been called once."""
    with Recorder(chain(case.module.parameters(), case.module.buffers())) as recorder:
        case.draw()
    floor = Floor(recorder.calls, case.device)
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
