"""Two drawings go on side by side, and end as `disa-predict` draws."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from disa_framework import SamplingConfig
from disa_framework.app.drawing import draw, side_by_side
from disa_framework.callbacks.sample_writers import Images, tiled
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Adaptive, Constant, Linear
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar

LABELS = torch.tensor([0, 1, 2, 1])


def module(sampling: SamplingConfig) -> ARDiffusionModule:
    return ARDiffusionModule(tiny_mar(latent_channels=1), sampling).eval()


def test_it_ends_as_it_is_drawn_at_once_and_counts_what_it_takes() -> None:
    for schedule in (Linear(4, 2), Adaptive(0.5, high=5)):
        own = module(SamplingConfig(schedule, num_stages=3))
        seen = []
        for drawing in draw(own, LABELS, 4, 7, nullcontext):
            assert drawing.images is not None
            seen.append((drawing.stages, drawing.evaluations, drawing.images))
        assert [stages for stages, _, _ in seen] == [1, 2, 3]
        if not schedule.adapts:
            assert [evaluations for _, evaluations, _ in seen] == [4, 7, 9]
        whole = own.drawing(seed=7).draw(LABELS, torch.arange(4))
        assert (seen[-1][2] == tiled(Images().prepare(whole), 2)).all()
        assert (seen[0][2] != seen[1][2]).any()
        assert all(spent > 0 for spent in drawing.seconds.values())


def test_the_shorter_one_waits_for_the_other() -> None:
    few = module(SamplingConfig(Constant(2), num_stages=2))
    modules = [few, few.drawing(replace(few.sampling, num_stages=4))]
    stages = [[drawing.stages for drawing in both] for both in side_by_side(modules, LABELS, 4, 0, nullcontext)]
    assert stages == [[1, 1], [2, 2], [2, 3], [2, 4]]


def test_what_is_no_image_is_refused() -> None:
    own = ARDiffusionModule(tiny_mar(latent_channels=4), SamplingConfig(Constant(2), num_stages=2)).eval()
    with pytest.raises(ValueError, match="channels"):
        next(draw(own, LABELS, 4, 0, nullcontext))
    mixture = ARDiffusionModule(MixtureAR(), SamplingConfig(Constant(2), num_stages=2))
    assert next(draw(mixture, None, 3, 0, nullcontext)).images is not None  # a row of tokens each
