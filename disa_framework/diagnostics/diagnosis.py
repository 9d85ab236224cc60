"""Why a schedule works, stage by stage: what the paper gives as evidence (arXiv 2505.20297), errors, and time.

Letters: `S` samples, `K` stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from disa_framework.diagnostics.caching import cache_errors
from disa_framework.diagnostics.entropy import conditional_entropy, gaussian_entropy
from disa_framework.diagnostics.predictability import predictability
from disa_framework.diagnostics.report import write
from disa_framework.diagnostics.runs import Probe, Stage, watch
from disa_framework.measure.cost import measure_cost
from disa_framework.module import ARDiffusionModule
from disa_framework.progress import Progress, silent
from disa_framework.runtime.feature_cache import Lazy
from disa_framework.sampling.condition import Condition, size, take
from disa_framework.schedules import Constant
from disa_framework.search.calibration import Calibration, measure_profile
from disa_framework.toy.mixture import MixtureAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Columns = Mapping[str, Sequence[float]]
"""`[K]` numbers by name."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured.

    Attributes:
        parts: the columns of each part, see `diagnose`.
    """

    parts: Mapping[str, Columns]

    @property
    def columns(self) -> dict[str, Sequence[float]]:
        """Those of all parts."""
        return {name: values for columns in self.parts.values() for name, values in columns.items()}

    def trend(self, column: str) -> float:
        """Rank correlation with the stage: 1 where a column rises all the way, -1 where it falls."""
        values = torch.tensor(self.columns[column], dtype=torch.float64)
        return spearman_corrcoef(values, torch.arange(len(values)).double()).item()

    @property
    def rows(self) -> list[tuple[float, ...]]:
        """The stage, and what each column has there."""
        return [(stage, *row) for stage, row in enumerate(zip(*self.columns.values(), strict=True))]

    def table(self) -> list[list[str]]:
        """One line a stage, below the headings; the last line has the trends."""
        lines = [[f"{value:.4g}" for value in row] for row in self.rows]
        return [["stage", *self.columns], *lines, ["trend", *(f"{self.trend(name):.2f}" for name in self.columns)]]

    @property
    def notes(self) -> list[str]:
        """What is to be known of the table."""
        return ["trend is the rank correlation with the stage"]

    def plot(self, part: str, axes: Axes) -> None:
        """Draws a part's columns over the stages."""
        for name, values in self.parts[part].items():
            axes.plot(range(len(values)), values, ".-", label=name)
        axes.set(xlabel="stage", ylabel=part, yscale="log" if part in ("error", "time", "caching") else "linear")
        axes.legend(fontsize="small")

    def save(self, folder: Path) -> Path:
        """Writes `stages.csv`, with one row a stage, the page `stages.html`, and its pictures; returns the page."""
        path, pictures = folder / "stages.csv", {part: partial(self.plot, part) for part in self.parts}
        numbers = [["stage", *self.columns], *self.rows]
        write(path, "What each stage shows", numbers, self.table(), self.notes, pictures)
        return path.with_suffix(".html")


@dataclass(frozen=True)
class _Subject:
    """What is measured, and how; runs are drawn when a part asks for them."""

    module: ARDiffusionModule
    condition: Condition | None
    probe: Probe
    progress: Progress

    @property
    def count(self) -> int:
        return self.probe.count if self.condition is None else size(self.condition)

    @cached_property
    def stages(self) -> list[Stage]:
        return watch(self.module, self.condition, self.probe, self.progress)

    @property
    def batch(self) -> tuple[Condition | None, int]:
        """The condition of the first samples, and how many they are."""
        count = min(self.probe.batch_size, self.count)
        return None if self.condition is None else take(self.condition, range(count)), count


def _predictability(subject: _Subject) -> Columns:
    z, tokens = [s.z for s in subject.stages if s.z is not None], [s.tokens for s in subject.stages]
    if not z:
        return {}
    return {"r2": predictability(z, tokens, subject.module.seed)}


def _variance(subject: _Subject) -> Columns:
    return {"variance": [s.variance.mean().item() for s in subject.stages if s.variance is not None]}


def _entropy(subject: _Subject) -> Columns:
    module = subject.module
    own = module.sampling.order is None and module.sampling.stage_sizes is None
    if isinstance(module.model, MixtureAR) and own:
        labels = subject.condition if isinstance(subject.condition, Tensor) else None
        stages = module.sampling.stages
        return {"entropy": conditional_entropy(module.model, stages, labels, subject.count, module.seed)}
    if surprises := [s.surprise for s in subject.stages if s.surprise is not None]:
        return {"entropy": surprises}
    spreads = [s.variance for s in subject.stages if s.variance is not None]
    return {"entropy": [gaussian_entropy(spread, subject.probe.repeats) for spread in spreads]}


def _straightness(subject: _Subject) -> Columns:
    return {"straightness": [s.straightness for s in subject.stages]}


def _error(subject: _Subject) -> Columns:
    module, (condition, count), menu = subject.module, subject.batch, subject.probe.menu
    profile = measure_profile(
        module.model, condition, module.sampling, Calibration(menu, stride=subject.probe.stride), batch_size=count,
        seed=module.seed, progress=subject.progress,
    )  # fmt: skip
    return {f"error_{steps}": errors for steps, errors in zip(menu, zip(*profile.errors, strict=True), strict=True)}


def _time(subject: _Subject) -> Columns:
    module = subject.module
    costs = measure_cost(module, *subject.batch)
    evaluations = module.sampling.solver.evaluations(module.model.process, subject.probe.steps)
    return {
        "backbone_ms": [1000 * seconds for seconds in costs.backbone],
        "head_ms": [1000 * evaluations * seconds for seconds in costs.head],
    }


def _caching(subject: _Subject) -> Columns:
    if not subject.module.model.caches_features:
        return {}
    # From the first stage on, which tells how long everything has to be computed.
    caches = [Lazy(refresh, start=1) for refresh in (2, 4, 8)]
    errors = cache_errors(subject.module, *subject.batch, caches)
    return {f"cache_error_{cache.refresh}": found for cache, found in zip(caches, errors, strict=True)}


PARTS: dict[str, Callable[[_Subject], Columns]] = {
    "predictability": _predictability,
    "variance": _variance,
    "entropy": _entropy,
    "straightness": _straightness,
    "error": _error,
    "time": _time,
    "caching": _caching,
}


def diagnose(
    module: ARDiffusionModule,
    condition: Condition | None = None,
    parts: Sequence[str] = tuple(PARTS),
    probe: Probe = Probe(),
    progress: Progress = silent,
) -> Diagnosis:
    """Measures each stage. The schedule is left aside: stages are compared at the same number of steps.

    Args:
        module: model, sampling config and seed.
        condition: of `S` samples.
        parts: what to measure:
            `predictability`: `r2` of a small network that predicts clean tokens from `z`, on samples that it has not
            seen; left out for a model without `z`;
            `variance`: of tokens drawn again and again from one `z`;
            `entropy`: of a token given `z`, in nats a channel: exact for `MixtureAR`; mean of `-log p` of what is drawn
            for a mixture head; elsewhere that of Gaussians with the variance measured;
            `straightness`: cosine between predicted direction and the line from noise to token;
            `error`: `error_T` for each `T` of the menu, how far `T` steps at this stage shift what comes out, see
            `disa_framework.search.calibration`;
            `time`: milliseconds a sample, of the backbone, and of the head at `steps` steps;
            `caching`: `cache_error_R` for each period `R` of feature caching, how far it puts `z` off given the same
            tokens; left out for a model that caches nothing.
        probe: how to look.
        progress: is told how much is done of what is being drawn.

    Raises:
        ValueError: for unknown parts or none, and if the request does not fit the model.
    """
    if unknown := [part for part in parts or ("",) if part not in PARTS]:
        raise ValueError(f"no part {unknown[0]!r}: the parts of a diagnosis are {', '.join(PARTS)}")
    if probe.repeats < 2 and {"variance", "entropy"} & {*parts}:
        raise ValueError(f"a variance needs at least 2 repeats, got {probe.repeats}")
    alike = module.drawing(replace(module.sampling, schedule=Constant(probe.steps)))
    subject = _Subject(alike, condition, probe, progress)
    measured = {part: PARTS[part](subject) for part in parts}
    return Diagnosis({part: columns for part, columns in measured.items() if columns})
