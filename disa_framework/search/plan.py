"""What a search is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from optuna.storages import BaseStorage

from disa_framework.measure.cost import Unit
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules.adaptive import Signal
from disa_framework.search.calibration import Calibration
from disa_framework.search.limits import Timed
from disa_framework.search.objective import RUNGS
from disa_framework.search.report import Row
from disa_framework.search.space import Space

Method = Literal["study", "pareto", "calibrate", "learn", "adapt"]


@dataclass(frozen=True)
class Plan:
    """How to search.

    Args:
        method: `study` tries and measures sampling configs; `pareto` does for all costs at once; `calibrate` and
            `learn` solve for the best budget, knowing how far few steps at each stage shift what is drawn; `adapt`
            makes a schedule that decides its steps while drawing.
        trials: of a study, in all, of all workers and all runs.
        rungs: numbers of samples after which poor trials are stopped; the last is that of a whole trial.
        seeds: of the final comparison, none of which the study used.
        finalists: best trials that are drawn twice more before one is chosen.
        batch_size: samples drawn together.
        space: what a study chooses.
        calibration: how few steps at each stage are tried; `None` has a study begin without calibrated and learned
            schedules.
        profile_samples: samples of the calibration, drawn together.
        signal: what an adaptive schedule goes by.
        starts: what a study begins with, by name, besides the hand-made ramps and what needs no trials.
        storage: of a study: a database URL, a journal file, or Optuna's own; `study.db` in the folder by default.
        study_name: within the storage.
        trainer: options of Lightning's trainer: accelerator, devices, strategy, precision.
    """

    method: Method = "study"
    trials: int = 40
    rungs: tuple[int, ...] = RUNGS
    seeds: int = 3
    finalists: int = 5
    batch_size: int = 64
    space: Space = Space()
    calibration: Calibration | None = Calibration()
    profile_samples: int = 500
    signal: Signal = "error"
    starts: Mapping[str, SamplingConfig] = field(default_factory=dict)
    storage: str | BaseStorage | None = None
    study_name: str = "disa"
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        for name in ("trials", "seeds", "finalists", "batch_size", "profile_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def tries(self) -> bool:
        """Whether samples are drawn and measured."""
        return self.method in ("study", "pareto")


class Point(NamedTuple):
    """Of a front: what nothing else beats in both distance and cost."""

    sampling: SamplingConfig
    distance: float
    cost: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sampling: the best; of a front the one of least distance.
        cost: of a sample, as predicted.
        unit: of all costs.
        timed: what it takes on the clock, if the limit was in seconds.
        rows: of a study, the winner and its rivals, drawn with noise that has decided nothing; the baseline comes last.
        front: of a Pareto study, by rising cost.
        notes: what else there is to know, in sentences.
        folder: with `best.yaml` or, of a front, `front/00.yaml` and so on, and of a study `report.html` and
            `trials.csv`; `None` if nothing was written.
    """

    sampling: SamplingConfig
    cost: float
    unit: Unit
    timed: Timed | None = None
    rows: tuple[Row, ...] = ()
    front: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
