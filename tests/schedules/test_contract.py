"""Every step schedule keeps the contract."""

from collections.abc import Callable

import pytest

from disa_framework.schedules import (
    Adaptive,
    Constant,
    Cosine,
    Linear,
    Logistic,
    PerStage,
    PiecewiseLinear,
    Power,
    StepSchedule,
    TwoStage,
)  # fmt: skip
from disa_framework.testing import ScheduleContract

SCHEDULES = [
    Constant(50), Constant(1), TwoStage(50, 5), Linear(50, 5), Linear(5, 50), Linear(1, 1), Cosine(100, 2),
    Power(50, 5, 2.0), Power(20, 1, 0.3), Logistic(50, 5), Logistic(5, 40, 0.2, 60.0),
    PiecewiseLinear(((0.0, 50), (0.4, 10.5), (1.0, 5))), PiecewiseLinear(((0.5, 7),)),
]  # fmt: skip


class TestSchedules(ScheduleContract):
    @pytest.fixture(params=SCHEDULES, ids=str)
    def schedule(self, request: pytest.FixtureRequest) -> StepSchedule:
        return request.param


class TestAdaptive(ScheduleContract):
    @pytest.fixture
    def schedule(self) -> StepSchedule:
        return Adaptive(threshold=0.5, signal="variance", low=3, high=40, first=50)


class TestPerStage(ScheduleContract):
    stages = (4,)

    @pytest.fixture
    def schedule(self) -> StepSchedule:
        return PerStage((50, 20, 1, 5))

    def test_it_is_the_table_it_was_given(self, schedule: StepSchedule) -> None:
        assert schedule.budget(4) == (50, 20, 1, 5)

    def test_it_refuses_another_number_of_stages(self, schedule: StepSchedule) -> None:
        with pytest.raises(ValueError, match="3 stages"):
            schedule.budget(3)


NONSENSE: dict[str, Callable[[], object]] = {
    "1 to 10000 steps; .* has 0": lambda: Constant(0),
    "stage 2 has 0": lambda: PerStage((3, 2, 0)),
    "has -2": lambda: Power(-2, 5),
    "has 100000": lambda: Linear(5, 100_000),
    "exponent must be above 0": lambda: Power(exponent=0.0),
    "0 < midpoint < 1": lambda: Logistic(midpoint=1.0),
    "steepness > 0": lambda: Logistic(steepness=0.0),
    "strictly increasing places": lambda: PiecewiseLinear(((0.5, 10), (0.5, 5))),
    r"got \[\]": lambda: PiecewiseLinear(()),
    "got nan": lambda: PiecewiseLinear(((0.5, float("nan")),)),
    "low <= high": lambda: Adaptive(1.0, low=5, high=4),
    "threshold > 0": lambda: Adaptive(0.0),
    "signal must be one of": lambda: Adaptive(1.0, "weather"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", NONSENSE)
def test_options_that_make_no_sense_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NONSENSE[message]()


def test_a_logistic_fall_may_be_a_cliff_or_a_ramp() -> None:
    assert Logistic(50, 5, 0.5, 5000.0).budget(8) == TwoStage(50, 5).budget(8)
    ramp, line = Logistic(50, 5, 0.5, 1e-17), Linear(50, 5)
    assert all(abs(a - b) <= 1 for a, b in zip(ramp.budget(8), line.budget(8), strict=True))  # one rounds, one cuts
