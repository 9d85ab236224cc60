"""Why a schedule works, stage by stage: what the paper gives as evidence (arXiv 2505.20297), errors, and time.

Letters: `S` samples, `K` stages, `M` entries of the menu of step counts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from disa_framework.diagnostics.caching import cache_errors
from disa_framework.diagnostics.entropy import conditional_entropy, gaussian_entropy
from disa_framework.diagnostics.predictability import predictability
from disa_framework.diagnostics.runs import MENU, Progress, Stage, watch
from disa_framework.files import write_atomically
from disa_framework.models import MixtureAR
from disa_framework.models.base import Condition
from disa_framework.models.lazy import REFRESHES, Lazy
from disa_framework.module import ARDiffusionModule
from disa_framework.search.calibration import measure_profile
from disa_framework.search.cost import measure_cost

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
        return rank_correlation(self.columns[column])

    def table(self) -> list[list[str]]:
        """One line a stage, below the headings; the last line has the trends."""
        columns = self.columns
        rows = zip(*columns.values(), strict=True)
        lines = [[str(stage), *(f"{value:.4g}" for value in row)] for stage, row in enumerate(rows)]
        return [["stage", *columns], *lines, ["trend", *(f"{self.trend(name):.2f}" for name in columns)]]

    def save(self, path: Path) -> None:
        """Writes a CSV with one row a stage."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["stage", *self.columns])
        for stage, row in enumerate(zip(*self.columns.values(), strict=True)):
            writer.writerow([stage, *row])
        write_atomically(path, text.getvalue().encode())

    def plot(self, part: str, ax: Axes | None = None) -> Axes:
        """Draws a part's columns over the stages, and returns the axes."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        for name, values in self.parts[part].items():
            axes.plot(range(len(values)), values, ".-", label=name)
        axes.set(xlabel="stage", ylabel=part, yscale="log" if part in ("error", "time", "caching") else "linear")
        axes.legend(fontsize="small")
        return axes


def rank_correlation(values: Sequence[float]) -> float:
    """Spearman's, of values and their places; equal values share the mean of their ranks. 0 if all are equal."""
    ordered = sorted(values)
    ranks = [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]
    middle = (len(values) - 1) / 2
    product = sum((rank - middle) * (place - middle) for place, rank in enumerate(ranks))
    squares = [sum((x - middle) ** 2 for x in xs) for xs in (ranks, range(len(values)))]
    return product / (squares[0] * squares[1]) ** 0.5 if min(squares) else 0.0


@dataclass(frozen=True)
class _Subject:
    """What is measured, and how; runs are drawn when a part asks for them."""

    module: ARDiffusionModule
    condition: Condition | None
    count: int
    batch_size: int
    steps: int
    repeats: int
    menu: Sequence[int]
    stride: int
    progress: Progress | None

    @cached_property
    def stages(self) -> list[Stage]:
        return watch(
            self.module, self.condition, self.count, steps=self.steps, repeats=self.repeats,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip

    @property
    def one_batch(self) -> Condition | None:
        return None if self.condition is None else self.condition[: self.batch_size]


def _predictability(subject: _Subject) -> Columns:
    z, tokens = [s.z for s in subject.stages if s.z is not None], [s.tokens for s in subject.stages]
    if not z:
        return {}
    found = predictability(z, tokens, subject.module.seed)
    return {"r2": [p.r2 for p in found], "mse": [p.mse for p in found]}


def _variance(subject: _Subject) -> Columns:
    return {"variance": [s.variance.mean().item() for s in subject.stages if s.variance is not None]}


def _entropy(subject: _Subject) -> Columns:
    model, stages = subject.module.model, subject.module.num_stages
    if isinstance(model, MixtureAR):
        labels = subject.condition if isinstance(subject.condition, Tensor) else None
        return {"entropy": conditional_entropy(model, stages, labels, subject.count, subject.module.seed)}
    spreads = [s.variance for s in subject.stages if s.variance is not None]
    return {"entropy": [gaussian_entropy(spread, subject.repeats) for spread in spreads]}


def _straightness(subject: _Subject) -> Columns:
    return {"straightness": [s.straightness for s in subject.stages]}


def _error(subject: _Subject) -> Columns:
    module = subject.module
    profile = measure_profile(
        module.model, subject.one_batch, solver=module.solver, guidance=module.guidance, num_stages=module.num_stages,
        menu=subject.menu, batch_size=min(subject.batch_size, subject.count), stride=subject.stride, seed=module.seed,
        progress=subject.progress,
    )  # fmt: skip
    by_steps = zip(subject.menu, zip(*profile.errors, strict=True), strict=True)
    return {f"error_{steps}": errors for steps, errors in by_steps}


def _time(subject: _Subject) -> Columns:
    module, process = subject.module, subject.module.model.process
    costs = measure_cost(module, subject.one_batch, min(subject.batch_size, subject.count))
    evaluations = module.solver.evaluations(process, subject.steps)
    return {
        "backbone_ms": [1000 * seconds for seconds in costs.backbone],
        "head_ms": [1000 * evaluations * seconds for seconds in costs.head],
    }


def _caching(subject: _Subject) -> Columns:
    # From the first stage on, which tells how long everything has to be computed.
    model, caches = subject.module.model, [Lazy(refresh, start=1) for refresh in REFRESHES]
    if not hasattr(model, "cache"):
        return {}
    size = min(subject.batch_size, subject.count)
    errors = cache_errors(subject.module, subject.one_batch, size, caches, subject.steps)
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
    *,
    parts: Sequence[str] = tuple(PARTS),
    count: int = 1000,
    batch_size: int = 250,
    steps: int = 50,
    repeats: int = 8,
    menu: Sequence[int] = MENU,
    stride: int = 1,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measures each stage. The module's schedule is left aside: stages are compared at the same number of steps.

    Args:
        module: model, solver, guidance, number of stages and seed.
        condition: of the samples, `S` labels or prompts.
        parts: what to measure:
            `predictability`: `r2` and `mse` of a small network that predicts clean tokens from `z`, on samples that it
            has not seen; left out for a model without `z`;
            `variance`: of tokens drawn again and again from one `z`;
            `entropy`: of a token given `z`, in nats a channel: exact for `MixtureAR`, elsewhere that of Gaussians with
            the variance measured;
            `straightness`: cosine between predicted direction and the line from noise to token;
            `error`: `error_T` for each `T` of the menu, how far `T` steps at this stage shift what comes out, see
            `disa_framework.search.calibration`;
            `time`: milliseconds an image, of the backbone, and of the head at `steps` steps;
            `caching`: `cache_error_R` for each period `R` of feature caching, how far it puts `z` off given the same
            tokens; left out for a model that caches nothing.
        count: `S`, where there is no condition.
        batch_size: samples drawn together; errors and times are those of one batch.
        steps: at every stage.
        repeats: draws from one `z`, at least 2 for variance and entropy.
        menu: step counts of which the error is measured, rising.
        stride: measures errors every so many stages only, and interpolates between them.
        progress: is told how much is done of what is being drawn.

    Raises:
        ValueError: for unknown parts, and if the request does not fit the model.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"no part {unknown[0]!r}: the parts of a diagnosis are {', '.join(PARTS)}")
    if repeats < 2:
        raise ValueError(f"a variance needs at least 2 repeats, got {repeats}")
    size = count if condition is None else len(condition)
    subject = _Subject(module, condition, size, batch_size, steps, repeats, menu, stride, progress)
    measured = {part: PARTS[part](subject) for part in parts}
    return Diagnosis({part: columns for part, columns in measured.items() if columns})
