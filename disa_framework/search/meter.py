"""Draws images with a setting and measures them, on one process or on several together.

One process leads. What it asks for goes to all, every one draws its share with Lightning's predict loop, and the
sums of the metric are added up. Images are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from disa_framework.data.requests import Request, RequestData, cycled
from disa_framework.models.base import Condition
from disa_framework.module import ARDiffusionModule
from disa_framework.search.cost import measure_latency
from disa_framework.search.quality import Quality
from disa_framework.search.space import Setting

_PATIENCE = timedelta(days=7)
_TIMED = 5


class Meter(Callback):
    """Measures settings with the same samples, so that they differ by nothing else.

    Args:
        module: what draws.
        quality: what is measured; `None` if nothing is.
        condition: class labels or prompts of all samples there may be; `None` draws unconditional images.
        batch_size: samples drawn together.
        trainer: options of Lightning's trainer: devices, strategy, precision.
    """

    def __init__(
        self,
        module: ARDiffusionModule,
        quality: Quality | None,
        condition: Condition | None,
        batch_size: int = 64,
        trainer: dict[str, Any] | None = None,
    ) -> None:
        self.module, self.quality, self.condition, self.batch_size = module, quality, condition, batch_size
        self._options = {
            **(trainer or {}), "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "inference_mode": True, "callbacks": [self],
        }  # fmt: skip
        self.world_size = Trainer(**self._options).world_size
        self.metric = None if quality is None else quality.metric(module, condition)
        self._group: dist.ProcessGroup | None = None
        self._run: tuple[str, int] | None = None
        self._drawn = 0

    @contextmanager
    def lead(self) -> Iterator[bool]:
        """Starts all processes, and tells the one that leads; the others draw along until its block ends.

        Raises:
            ValueError: if the module as it is cannot be drawn with.
        """
        count = self.world_size * self.batch_size
        trainer = self._draw(count if self.condition is None else min(count, len(self.condition)), self.module.seed)
        self._reset()
        if self.world_size == 1:
            yield True
            return
        # Ranks wait here while the first one thinks; that must neither time out nor keep a device busy.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        if trainer.is_global_zero:
            try:
                yield True
            finally:
                self._share(None)
        else:
            self._follow()
            yield False

    def measure(self, setting: Setting, count: int, seed: int | None = None) -> float:
        """The distance of samples `0 … count - 1`. Goes on from the last call if that had the same setting and seed.

        Raises:
            Exception: whatever drawing raised, on any process.
            ValueError: if the distance is not finite.
        """
        job = (setting, count, self.module.seed if seed is None else seed)
        if self._group is not None:
            self._share(job)
        value = self._measure(*job)
        if not math.isfinite(value):
            raise ValueError(f"the distance of {count} images is {value}")
        return value

    def latencies(self, settings: Sequence[Setting]) -> list[float]:
        """Seconds per image with each of the settings, timed in turn on this process alone."""
        asked = None if self.condition is None else cycled(self.condition, self.batch_size)
        with self.on_device():
            return measure_latency(self.module, asked, self.batch_size, settings, repeats=_TIMED)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The module where and in the precision in which it draws."""
        trainer = Trainer(**self._options)
        plugin = trainer.precision_plugin
        plugin.convert_module(self.module).to(trainer.strategy.root_device)
        with plugin.predict_step_context(), _default_dtype(torch.float32):  # what is measured is no image
            yield

    def check(self, counts: tuple[int, ...]) -> None:
        """Raises a ValueError if images cannot be drawn in these portions."""
        added = [count - before for before, count in zip((0, *counts), counts, strict=False)]
        if not counts or min(added) < 1:
            raise ValueError(f"numbers of images must be above 0 and rise, got {list(counts)}")
        if min(added) <= (self.world_size - 1) * self.batch_size:
            raise ValueError(
                f"{self.world_size} processes need a batch each to add {min(added)} images: "
                f"make batch_size smaller than {self.batch_size}"
            )

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
            raise ValueError("the model drew NaN or infinite pixels")
        if self.quality is not None and self.metric is not None:
            self.quality.update(self.metric, new)

    def _measure(self, setting: Setting, count: int, seed: int) -> float:
        run = (setting.key, seed)
        if run != self._run or count < self._drawn:
            self._reset()
        self._run, error = None, None
        try:
            if count > self._drawn:
                with setting.applied(self.module):
                    self._draw(count, seed)
        except Exception as raised:
            error = raised
        self._agree(error)
        self._run, self._drawn = run, count
        return math.nan if self.metric is None else float(self.metric.compute())

    def _reset(self) -> None:
        """Forgets what has been drawn."""
        self._drawn = 0
        if self.metric is not None:
            self.metric.reset()

    def _draw(self, count: int, seed: int) -> Trainer:
        """Adds samples up to `count` to the metric."""
        asked = None if self.condition is None else self.condition[:count]
        data = RequestData(count, asked, self.batch_size, lambda: range(self._drawn))
        trainer = Trainer(**self._options)
        before, self.module.seed = self.module.seed, seed
        try:
            trainer.predict(self.module, datamodule=data, return_predictions=False)
        finally:
            self.module.seed = before
        return trainer

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
        while job := self._share(None):
            with suppress(Exception):  # the leading process raises it, too
                self._measure(*job)

    def _share(self, job: tuple[Setting, int, int] | None) -> tuple[Setting, int, int] | None:
        """The job of the leading process."""
        jobs = [job]
        dist.broadcast_object_list(jobs, src=0, group=self._group)
        return jobs[0]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made in this precision unless told otherwise, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
