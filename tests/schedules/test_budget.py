"""A budget is whole step counts: what is none is refused rather than rounded."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule, check_budget


@dataclass(frozen=True)
class Given(StepSchedule):
    """Steps as they are, of any type."""

    steps: Any

    def compute(self, num_stages: int) -> Iterable[int]:
        return self.steps


BROKEN: dict[str, Callable[[], object]] = {
    "Constant": lambda: Constant(2.5),  # type: ignore[arg-type]
    "Linear": lambda: Linear(50.5, 5),  # type: ignore[arg-type]
    "PerStage": lambda: PerStage((5, 2.5, 1)),  # type: ignore[arg-type]
    "a schedule of one's own": lambda: Given([5, 2.5, 1]).budget(3),
    "not a number": lambda: Given([math.nan]).budget(1),
    "infinite": lambda: Given([math.inf]).budget(1),
    "a text": lambda: Given(["2.5"]).budget(1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_part_of_a_step_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"whole number of steps, got '?(2\.5|50\.5|nan|inf)"):
        BROKEN[name]()


@pytest.mark.parametrize("steps", [[3.0, 2.0], np.array([3, 2]), torch.tensor([3, 2])], ids=["float", "numpy", "torch"])
def test_whole_numbers_of_any_type_become_integers(steps: Iterable[float]) -> None:
    budget = Given(steps).budget(2)
    assert budget == (3, 2) and all(type(count) is int for count in budget)


@pytest.mark.parametrize("steps", [[], [1], [1, 2, 3]], ids=str)
def test_a_budget_has_one_count_a_stage(steps: list[int]) -> None:
    with pytest.raises(ValueError, match=f"2 stages needs as many step counts, got {len(steps)}"):
        check_budget(steps, 2)


@pytest.mark.parametrize("outside", [0, -1, 10_001])
def test_a_stage_with_no_step_or_far_too_many_is_named(outside: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 10000 steps; stage 1 has {outside}"):
        check_budget([3, outside], 2)
