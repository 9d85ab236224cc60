"""How strong guidance is, at which stage, and when."""

import math

import pytest
import torch

from disa_framework import Guidance
from disa_framework.guidance import combine


def test_guidance_is_off_unless_asked_for() -> None:
    assert not Guidance().active
    assert not Guidance(1.0, "constant").active
    assert not Guidance(1.0).acts(0.5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_a_scale_other_than_1_is_active(scale: float) -> None:
    assert Guidance(scale).active and Guidance(scale).acts(0.5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_a_linear_scale_grows_from_1_as_the_image_does(scale: float) -> None:
    guidance = Guidance(scale)
    assert [guidance.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, (1 + scale) / 2, scale])


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_a_constant_scale_stays(scale: float) -> None:
    guidance = Guidance(scale, "constant")
    assert [guidance.at(p) for p in (0.0, 0.5, 1.0)] == [scale] * 3


def test_it_acts_within_its_interval_both_ends_included() -> None:
    guidance = Guidance(2.0, interval=(0.2, 0.7))
    assert [guidance.acts(t) for t in (0.0, 0.199, 0.2, 0.5, 0.7, 0.701, 1.0)] == [
        False, False, True, True, True, False, False,
    ]  # fmt: skip


def test_an_interval_may_be_a_single_time() -> None:
    guidance = Guidance(2.0, interval=(1.0, 1.0))
    assert guidance.acts(1.0) and not guidance.acts(0.999)


@pytest.mark.parametrize(
    "interval", [(0.5, 0.4), (-0.1, 0.5), (0.0, 1.1), (math.nan, 1.0), (0.0, math.nan)], ids=str
)
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Guidance(2.0, interval=interval)


def test_an_unknown_schedule_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(ValueError, match="'linear' or 'constant', got 'cosine'"):
        Guidance(2.0, "cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Guidance(scale)


def test_the_combination_goes_from_unconditional_through_conditional_and_beyond() -> None:
    cond, uncond = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    assert combine(cond, uncond, 0.0).tolist() == [1.0, 1.0]
    assert combine(cond, uncond, 1.0).tolist() == [3.0, -1.0]
    assert combine(cond, uncond, 2.0).tolist() == [5.0, -3.0]


def test_a_rising_scale_begins_with_none_and_ends_whole_and_a_single_stage_is_the_last() -> None:
    guidance = Guidance(3.0)
    assert [guidance.rising(stage, 3) for stage in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    assert guidance.rising(0, 1) == 3.0
    assert [Guidance(3.0, "constant").rising(stage, 2) for stage in range(2)] == [3.0, 3.0]
