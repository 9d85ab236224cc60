"""Draws with one sampling config after another, in Lightning's predict loop, and measures what comes out.

One process leads: it alone decides what is drawn, and the others draw along. Samples are not kept, but for the first
few of the last run.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from disa_framework.callbacks.sample_writers import pictured, png
from disa_framework.data.requests import Request, RequestData, predict, predictor
from disa_framework.measure.cases import placed
from disa_framework.measure.latency import measure_latency
from disa_framework.metrics.quality import Quality
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition, cycled, size, take
from disa_framework.sampling.config import SamplingConfig

_PATIENCE = timedelta(days=7)
_TIMED = 5
_SHOWN = 20  # samples of a picture
_WIDEST = 1600  # pixels of one: larger ones are made smaller

Job = tuple[SamplingConfig, int, int]
"""A sampling config, a number of samples, a seed."""
T = TypeVar("T")


class Meter(Callback):
    """Measures sampling configs with the same samples, so that they differ by nothing else.

    Args:
        module: what draws.
        quality: what is measured; `None` if nothing is.
        condition: of all samples there may be; `None` draws unconditional ones.
        batch_size: samples drawn together.
        trainer: options of Lightning's trainer: devices, strategy, precision.
    """

    def __init__(
        self,
        module: ARDiffusionModule,
        quality: Quality | None,
        condition: Condition | None,
        batch_size: int = 64,
        trainer: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.quality, self.condition, self.batch_size = module, quality, condition, batch_size
        self._options = {**(trainer or {}), "enable_progress_bar": False, "enable_model_summary": False}
        made = self._trainer()
        self.world_size, self.precision = made.world_size, str(made.precision)
        self.metric = None if quality is None else quality.metric(module, condition)
        self._group: dist.ProcessGroup | None = None
        self._run: Job | None = None
        self._first: Tensor | None = None

    def lead(self, work: Callable[[], T]) -> T | None:
        """Starts all processes, and has one of them do the work; the others draw along.

        Returns:
            What the work gives, on all processes; `None` on the others if it raised an error.

        Raises:
            ValueError: if the module as it is cannot be drawn with.
        """
        count = self.world_size * self.batch_size
        count = count if self.condition is None else min(count, size(self.condition))
        leads, found = self._draw(self.module, count).is_global_zero, None
        self._reset()
        if self.world_size == 1:
            return work()
        # Ranks wait here while the first one thinks; that must neither time out nor keep a device busy.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            if leads:
                found = work()
            else:
                self._follow()
        finally:
            if leads:
                self._share(None)
            found = self._share(found)
            dist.destroy_process_group(self._group)
            self._group = None
        return found

    def measure(self, sampling: SamplingConfig, count: int, seed: int | None = None) -> float:
        """The distance of samples `0 … count - 1`. Goes on from the last call if that had the same config and seed.

        Raises:
            Exception: whatever drawing raised, on any process.
            ValueError: if the distance is not finite.
        """
        job = (sampling, count, self.module.seed if seed is None else seed)
        if self._group is not None:
            self._share(job)
        value = self._measure(*job)
        if not math.isfinite(value):
            raise ValueError(f"the distance of {count} samples is {value}")
        return value

    def latencies(self, samplings: Sequence[SamplingConfig]) -> list[float]:
        """Seconds per sample with each of the configs, timed in turn on this process alone."""
        with self.on_device():
            return measure_latency(self.module, self.batch(), self.batch_size, samplings, repeats=_TIMED)

    def picture(self, sampling: SamplingConfig) -> bytes | None:
        """A PNG of the first samples, the same noise for every config; `None` where samples are no images."""
        condition = None if self.condition is None else cycled(self.condition, _SHOWN)
        with self.on_device(), torch.inference_mode():
            return _picture(self.module.drawing(sampling).draw(condition, torch.arange(_SHOWN)))

    def measured_picture(self) -> bytes | None:
        """The same of what `measure` drew last, which is not drawn again: of its first batch, if that is smaller."""
        return None if self._first is None else _picture(self._first)

    def batch(self) -> Condition | None:
        """The condition of the first samples, as many as are drawn together."""
        return None if self.condition is None else cycled(self.condition, self.batch_size)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The module where and in the precision in which it draws."""
        with placed(self.module, self._trainer())():
            yield

    def check(self, counts: tuple[int, ...]) -> None:
        """Raises a ValueError if samples cannot be drawn in these portions."""
        added = [count - before for before, count in zip((0, *counts), counts, strict=False)]
        if not counts or min(added) < 1:
            raise ValueError(f"numbers of samples must be above 0 and rise, got {list(counts)}")
        if min(added) <= (self.world_size - 1) * self.batch_size:
            raise ValueError(
                f"{self.world_size} processes need a batch each to add {min(added)} samples: "
                f"make batch_size smaller than {self.batch_size}"
            )
        if self.condition is not None and (known := size(self.condition)) < counts[-1]:
            raise ValueError(f"{counts[-1]} samples need a condition of as many, got one of {known}: see cycled")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metric is not None:
            self.metric.to(pl_module.device)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Request,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        new: Tensor = outputs[batch.indices >= self._drawn]  # a batch that was begun before is drawn again
        if not new.isfinite().all():
            raise ValueError("the model drew NaN or infinite values")
        if batch.indices[0] == 0:
            self._first = outputs[:_SHOWN]
        if self.quality is not None and self.metric is not None:
            self.quality.update(self.metric, new)

    @property
    def _drawn(self) -> int:
        """Samples that the metric has seen."""
        return self._run[1] if self._run else 0

    def _measure(self, sampling: SamplingConfig, count: int, seed: int) -> float:
        run = self._run
        if run is None or (run[0], run[2]) != (sampling, seed) or count < run[1]:
            self._reset()
        error = None
        try:
            if count > self._drawn:
                self._draw(self.module.drawing(sampling, seed), count)
        except Exception as raised:
            error = raised
        self._run = None
        self._agree(error)
        self._run = (sampling, count, seed)
        return math.nan if self.metric is None else float(self.metric.compute())

    def _reset(self) -> None:
        """Forgets what has been drawn."""
        self._run = None
        if self.metric is not None:
            self.metric.reset()

    def _draw(self, module: ARDiffusionModule, count: int) -> Trainer:
        """Adds the samples that it has not seen to the metric, up to `count`."""
        drawn = self._drawn
        asked = None if self.condition is None else take(self.condition, range(count))
        data = RequestData(count, asked, self.batch_size, lambda: range(drawn))
        trainer = self._trainer()
        with _quiet():
            predict(trainer, module, data)
        return trainer

    def _trainer(self) -> Trainer:
        with _quiet():
            return predictor(self._options, self)

    def _agree(self, error: Exception | None) -> None:
        """Raises on all processes if any has an error."""
        texts: list[str | None] = [None] * self.world_size
        if self._group is not None:
            dist.all_gather_object(texts, error and f"{type(error).__name__}: {error}", group=self._group)
        if error is not None:
            raise error
        for text in filter(None, texts):
            raise RuntimeError(f"another process raised {text}")

    def _follow(self) -> None:
        """Draws along until the leading process is done."""
        job: Job | None = None
        while job := self._share(job):
            with suppress(Exception):  # the leading process raises it, too
                self._measure(*job)

    def _share(self, value: T) -> T:
        """The leading process's value."""
        values = [value]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]


def _picture(samples: Tensor) -> bytes | None:
    """A PNG of samples; `None` if they are no images."""
    try:
        grid = pictured(samples)
    except ValueError:
        return None
    return png(grid, -(-max(grid.shape) // _WIDEST))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says about itself, each time anew."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec.*is deprecated")
            yield
    finally:
        logger.setLevel(before)
