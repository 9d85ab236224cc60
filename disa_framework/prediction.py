"""Drawing the samples of a run: into a folder, where it can be gone on with, or to measure them and keep none.

Both are Lightning's predict loop, on as many devices as its trainer is told to use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from disa_framework import values
from disa_framework.callbacks.folder_writer import FolderWriter
from disa_framework.callbacks.sample_folder import Format, SampleFolder
from disa_framework.callbacks.sample_writers import Images
from disa_framework.data.reading import Reading
from disa_framework.data.requests import RequestData, predict, predictor
from disa_framework.measure.throughput import Throughput
from disa_framework.metrics.collecting import Evaluation, collect
from disa_framework.metrics.evaluation import Comparison, describe, figures
from disa_framework.metrics.feature_set import FeatureSet
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, cycled, size
from disa_framework.tokenizers import Identity


@dataclass(frozen=True)
class Drawn:
    """A run that is drawn.

    Attributes:
        folder: where its samples are.
        count: how many there are.
        evaluations: of the head, for each; at most, where the schedule adapts.
        seconds: that each has taken on this process; `None` if it has found all of them drawn.
    """

    folder: SampleFolder
    count: int
    evaluations: int
    seconds: float | None


def draw(
    module: ARDiffusionModule,
    folder: SampleFolder,
    condition: Condition | None = None,
    count: int | None = None,
    *,
    batch_size: int = 64,
    form: Format | None = None,
    trainer: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Drawn | None:
    """Draws samples into a folder. A run that was stopped goes on where it was.

    Args:
        module: what draws; drawing in half precision rounds its weights.
        folder: of this run alone.
        condition: what is asked for in turn; `None` draws unconditional samples.
        count: samples, as many as the condition has by default.
        batch_size: samples drawn together.
        form: in which images are kept; files by default, as for other samples.
        trainer: options of Lightning's trainer: devices, strategy, precision.
        facts: are written into the folder's `samples.json`, too.

    Returns:
        What has been drawn; `None` on other processes than the first.

    Raises:
        ValueError: if this cannot be drawn or written, or the folder holds samples of another run.
        OSError: if a file cannot be written, or has been lost.
    """
    data, timer = _requests(module, condition, count, batch_size, folder.finished), Throughput()
    _check(module, folder, form)
    runner = predictor(trainer or {}, timer, FolderWriter(folder))  # files are written off the clock
    if runner.is_global_zero:
        how = {"precision": str(runner.precision), "writer": values.dump(folder.writer)}
        folder.claim(module.identity(condition, batch_size, **how))
    predict(runner, module, data)
    runner.strategy.barrier("all samples are written")
    seconds = timer.seconds_per_image
    return _finish(module, folder, data, form, facts or {}, seconds) if runner.is_global_zero else None


def measure(
    module: ARDiffusionModule,
    comparison: Comparison,
    condition: Condition | None = None,
    count: int | None = None,
    *,
    batch_size: int = 64,
    trainer: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Measures images while they are drawn, and keeps none.

    Args:
        module, condition, count, batch_size, trainer: as in `draw`.
        comparison: what they are measured against.

    Returns:
        Figures, and what they were made with, as plain data; `None` on other processes than the first.

    Raises:
        ValueError: if this cannot be drawn, or not be compared.
    """
    data, extractor, timer = _requests(module, condition, count, batch_size), comparison.extractor(), Throughput()
    network, reference = describe(extractor), comparison.reference_features(extractor, Reading(trainer=trainer or {}))
    features = FeatureSet(extractor, data.count, comparison.precision_recall)
    runner = predictor(trainer or {}, timer, Evaluation(features))
    made = module.identity(condition, batch_size, precision=str(runner.precision))
    predict(runner, module, data)
    found = collect(features)
    if not runner.is_global_zero:
        return None
    return {
        **figures(found, reference),
        "images": data.count,
        "seconds_per_image": timer.seconds_per_image,
        "head_evaluations_per_image": module.evaluations(),
        "reference": comparison.reference,
        **network,
        "pixels": "rounded to bytes",
        "identity": made,
    }


def _requests(
    module: ARDiffusionModule,
    condition: Condition | None,
    count: int | None,
    batch_size: int,
    finished: Callable[[], Collection[int]] = tuple,
) -> RequestData:
    """All samples of a run."""
    if condition is None and count is None:
        raise ValueError("unconditional samples need a count")
    if condition is not None:
        module.model.check_condition(condition)
    number = size(condition) if count is None else count
    asked = None if condition is None else cycled(condition, max(0, number))
    return RequestData(number, asked, batch_size, finished)


def _check(module: ARDiffusionModule, folder: SampleFolder, form: Format | None) -> None:
    """Raises a ValueError if samples cannot be kept as is asked for, as far as can be told before they are drawn."""
    if form and not isinstance(folder.writer, Images):
        raise ValueError(f"--format {form} is for images: leave it out for {type(folder.writer).__name__}")
    if isinstance(module.tokenizer, Identity):
        folder.writer.check(module.model.latent_shape)


def _finish(
    module: ARDiffusionModule,
    folder: SampleFolder,
    data: RequestData,
    form: Format | None,
    facts: Mapping[str, Any],
    seconds: float | None,
) -> Drawn:
    """Brings the samples into the form that is asked for, and writes down what they took."""
    if lost := set(range(data.count)) - folder.finished():
        raise OSError(f"{len(lost)} samples are missing in {folder.path}: start the command again")
    # A run that found everything drawn has no time of its own.
    seconds = seconds or folder.facts().get("seconds_per_image")
    made = {
        "num_images": data.count,
        "budget": list(module.sampling.budget),
        "budget_is_upper_bound": module.sampling.schedule.adapts,
        "head_evaluations_per_image": module.evaluations(),
        "seconds_per_image": seconds,
    }
    folder.describe({**made, **facts})
    if isinstance(folder.writer, Images):
        labels = data.condition.tolist() if isinstance(data.condition, Tensor) else None
        folder.keep(form or "png", data.count, labels)
    return Drawn(folder, data.count, module.evaluations(), seconds)
