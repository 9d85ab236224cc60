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
from disa_framework.search.finalists import Row
from disa_framework.search.fitting import Fitting
from disa_framework.search.limits import Timed
from disa_framework.search.objective import RUNGS
from disa_framework.search.space import Space
from disa_framework.values import check_numbers

Method = Literal["study", "pareto", "fit", "calibrate", "learn", "adapt"]


@dataclass(frozen=True)
class Plan:
    """How to search.

    Args:
        method: `study` tries and measures sampling configs; `pareto` does for all costs at once; `fit` fits a solver of
            few steps to the head; `calibrate` and `learn` solve for the best budget, knowing how far few steps at each
            stage shift what is drawn; `adapt` makes a schedule that decides its steps while drawing.
        trials: of a study, in all, of all workers and all runs.
        rungs: numbers of samples after which poor trials are stopped; the last is that of a whole trial.
        seeds: of the final comparison, none of which the study used.
        finalists: best trials that are drawn twice more before one is chosen.
        batch_size: samples drawn together.
        space: what a study chooses; `None` is all that there is to choose for the model, see `Space.whole`.
        calibration: how few steps at each stage are tried; `None` has a study begin without calibrated and learned
            schedules.
        fitting: how a solver of few steps is fitted to the head; a study begins with one if this is given.
        profile_samples: samples of the calibration and of the fit, drawn together.
        signal: what an adaptive schedule goes by.
        starts: what a study begins with, by name, besides the hand-made ramps and what needs no trials.
        storage: of a study: a SQLite file, a database URL, or Optuna's own; `study.db` in the folder by default.
        study_name: within the storage.
        trainer: options of Lightning's trainer: accelerator, devices, strategy, precision.
    """

    method: Method = "study"
    trials: int = 40
    rungs: tuple[int, ...] = RUNGS
    seeds: int = 3
    finalists: int = 5
    batch_size: int = 64
    space: Space | None = None
    calibration: Calibration | None = Calibration()
    fitting: Fitting | None = None
    profile_samples: int = 500
    signal: Signal = "error"
    starts: Mapping[str, SamplingConfig] = field(default_factory=dict)
    storage: str | BaseStorage | None = field(default=None, repr=False)  # may have a password
    study_name: str = "disa"
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        check_numbers(Plan.__init__, vars(self))
        if not self.rungs or min(self.rungs) < 1 or sorted({*self.rungs}) != [*self.rungs]:
            raise ValueError(f"rungs must be numbers of samples from 1 on that rise, got {[*self.rungs]}")

    @property
    def tries(self) -> bool:
        """Whether samples are drawn and measured."""
        return self.method in ("study", "pareto")


class Point(NamedTuple):
    """Of a front: what nothing else beats in both distance and cost. No distance where nothing was drawn."""

    sampling: SamplingConfig
    distance: float | None
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
