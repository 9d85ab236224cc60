"""Times several ways to draw, in turn, beside their floors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from lightning import Trainer

from disa_framework.measure.floor import Recorder, replaying
from disa_framework.measure.latency import RunTimer, StageTimer, now, warm_up
from disa_framework.measure.operations import operations, peak
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.memory import peak_memory
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer
from disa_framework.schedules.text import schedule_from

Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a module is called."""

ONE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
"""Options of Lightning's trainer."""

PARTS = ("backbone", "head", "decoder", "rest")
"""The head's goes from noise to tokens in their places, the decoder's from the last stage to what the tokenizer makes
of the latents; the rest comes before the first stage."""


@dataclass(frozen=True)
class Case:
    """One way to draw.

    Attributes:
        name: as it is shown.
        module: model, sampling config and all else; cases may share a model.
        condition: of `B` samples; `None` draws unconditional ones.
        batch_size: `B`.
        precision: of the module.
    """

    name: str
    module: ARDiffusionModule
    condition: Condition | None
    batch_size: int
    precision: Precision = nullcontext

    @property
    def device(self) -> torch.device:
        """Where it is drawn."""
        return self.module.model.device

    def draw(self, *observers: Observer) -> None:
        """Draws a batch."""
        with self.precision():
            self.module.draw(self.condition, torch.arange(self.batch_size), observers)


@dataclass(frozen=True)
class Timing:
    """What was measured of a case.

    Attributes:
        case: what was drawn.
        peak_memory: bytes, and of a CPU those of the whole process; `None` where the system does not tell.
        rounds: seconds per sample of the `whole`, of each of the `PARTS`, and of the `floor`, its matrix products and
            attention calls alone, if there are any. Looking at the clock between stages costs time, too, so the parts
            come from runs of their own, and are brought to the whole by a common factor.
        operations: of these products and calls, per sample; see `measure.operations`.
        peak: operations a second that the device can do in the case's precision.
    """

    case: Case
    peak_memory: int | None
    rounds: tuple[dict[str, float], ...]
    operations: float
    peak: float

    def seconds(self, name: str) -> list[float]:
        """One for each round; none if there is no floor."""
        return [found[name] for found in self.rounds if name in found]


def variations(sampling: SamplingConfig, schedules: Sequence[str] | None = None) -> dict[str, SamplingConfig]:
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

    return {str(sampling.schedule): sampling} if schedules is None else {text: varied(text) for text in schedules}


def placed(module: ARDiffusionModule, trainer: Trainer) -> Precision:
    """Brings a module to where Lightning's trainer draws with it, in its precision; the module is changed in place."""
    trainer.precision_plugin.convert_module(module).to(trainer.strategy.root_device)
    return trainer.precision_plugin.predict_step_context


def on_one_device(options: dict[str, Any]) -> Trainer:
    """A trainer with these options, but for several devices, and quiet."""
    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": []}
    return Trainer(**{**options, **ONE_DEVICE, **quiet})


@torch.inference_mode()
def time_cases(cases: Sequence[Case], *, repeats: int = 5) -> list[Timing]:
    """Times all cases and their floors in turn, so that a slow spell of the machine meets all alike.

    Args:
        cases: what is drawn.
        repeats: rounds, after one that warms up.

    Raises:
        ValueError: if there is no case or no round, or a case cannot be drawn.
    """
    if not cases or repeats < 1:
        raise ValueError(f"there must be something to time, and at least 1 round: got {len(cases)} and {repeats}")
    for case in cases:
        case.module.eval()
    peaks = [peak_memory(case.device, case.draw) for case in cases]  # before floors take memory
    draws = [_Drawn(case) for case in cases]
    rounds = [[drawn.time() for drawn in draws] for _ in range(warm_up(cases[0].device) + repeats)][-repeats:]
    return [
        Timing(case, memory, times, drawn.operations / case.batch_size, drawn.peak)
        for case, memory, times, drawn in zip(cases, peaks, zip(*rounds, strict=True), draws, strict=True)
    ]


class _Drawn:
    """A case as it is timed, again and again. Its floor is there if it has calls that count."""

    def __init__(self, case: Case) -> None:
        self.case = case
        asked = case.module, case.condition, case.batch_size
        self.whole, self.stages = RunTimer(*asked), StageTimer(*asked)
        with Recorder(chain(case.module.parameters(), case.module.buffers())) as recorder:
            case.draw(Observer())  # which keeps calls out of a CUDA graph
        self.floor = replaying(recorder.calls, case.device) if recorder.calls else None
        self.operations = operations(recorder.calls, case.device)  # which makes them once
        with case.precision():
            self.peak = peak(case.device, case.module.model.dtype)

    def time(self) -> dict[str, float]:
        """Seconds per sample, as `Timing` has them."""
        with self.case.precision():
            whole = self.whole()
            start, *stages, end = self.stages()
        parts = dict(zip(PARTS, (sum(stages[::2]), sum(stages[1::2]), end, start), strict=True))
        found = {"whole": whole, **{part: spent * whole / sum(parts.values()) for part, spent in parts.items()}}
        if self.floor is not None:
            begun = now(self.case.device)
            self.floor()
            found["floor"] = now(self.case.device) - begun
        return {name: seconds / self.case.batch_size for name, seconds in found.items()}
