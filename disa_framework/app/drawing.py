"""Draws two ways in turn, stage by stage, and times their parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from disa_framework.callbacks.sample_writers import pictured
from disa_framework.data.archive import Pixels
from disa_framework.measure.cases import Precision
from disa_framework.measure.latency import now
from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.generation import Observer, unfolding
from disa_framework.sampling.history import StageRecord


@dataclass
class Drawing(Observer):
    """How far a batch has come.

    Attributes:
        images: in rows `[h, w, c]`, with nothing yet where no stage has been.
        stages: that are drawn.
        evaluations: of the head, for each sample.
        seconds: of the batch, in backbone, head and decoder.
    """

    images: Pixels | None = None
    stages: int = 0
    evaluations: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("backbone", "head", "decoder"), 0.0))
    _since: float = 0.0

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self._device = model.device
        self.go_on()

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self._lap("backbone")

    def accepted(self, record: StageRecord, tokens: torch.Tensor) -> None:
        self._lap("head")
        self.stages, self.evaluations = record.stage + 1, self.evaluations + record.evaluations

    def go_on(self) -> None:
        """Starts the clock again, which has shown what is not drawing."""
        self._since = now(self._device)

    def decoded(self) -> None:
        """Notes the time since the last stage as the decoder's, which a run needs but once."""
        self.seconds["decoder"] = now(self._device) - self._since

    def _lap(self, part: str) -> None:
        moment = now(self._device)
        self.seconds[part] += moment - self._since
        self._since = moment


def draw(
    module: ARDiffusionModule, condition: Condition | None, count: int, seed: int, precision: Precision
) -> Iterator[Drawing]:
    """The same drawing after each stage, as far as it has come.

    Args:
        module: what draws, with its sampling config.
        condition: of `count` samples; `None` draws unconditional ones.
        count: samples.
        seed: of the noise.
        precision: in which the module is called.

    Raises:
        ValueError: if this cannot be drawn, or what is drawn are no images.
    """
    drawing = Drawing()
    stages = unfolding(module.model, condition, module.sampling, seed=seed, batch_size=count, observers=[drawing])
    while True:
        with precision(), torch.inference_mode():
            if drawing.stages:
                drawing.go_on()
            latents = next(stages, None)
            if latents is None:
                return
            images = module.tokenizer.decode(latents)
            drawing.decoded()
            drawing.images = pictured(images, math.ceil(math.sqrt(count)))
        yield drawing


def side_by_side(
    modules: Sequence[ARDiffusionModule],
    condition: Condition | None,
    count: int,
    seed: int,
    precision: Precision,
) -> Iterator[list[Drawing]]:
    """The drawings of several modules from the same noise, a stage of each in turn."""
    last: list[Drawing] = []
    for drawings in zip_longest(*(draw(module, condition, count, seed, precision) for module in modules)):
        last = [new or old for new, old in zip(drawings, last or drawings, strict=True)]
        yield last
