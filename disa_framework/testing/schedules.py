"""What every step schedule has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from disa_framework.schedules import StepSchedule, load_schedule


class ScheduleContract:
    """Subclass and override the fixture `schedule`.

    Attributes:
        stages: numbers of stages the schedule is asked for.
    """

    stages: Sequence[int] = (1, 2, 3, 10, 64)

    @pytest.fixture
    def schedule(self) -> StepSchedule:
        raise NotImplementedError("override the fixture `schedule`")

    def test_a_budget_is_a_tuple_of_whole_steps_one_a_stage(self, schedule: StepSchedule) -> None:
        for num_stages in self.stages:
            budget = schedule.budget(num_stages)
            assert isinstance(budget, tuple)
            assert len(budget) == num_stages
            assert all(type(steps) is int and steps >= 1 for steps in budget)

    def test_a_budget_asked_for_twice_is_the_same(self, schedule: StepSchedule) -> None:
        for num_stages in self.stages:
            assert schedule.budget(num_stages) == schedule.budget(num_stages)

    def test_no_stages_are_refused(self, schedule: StepSchedule) -> None:
        with pytest.raises(ValueError, match="stage"):
            schedule.budget(0)

    def test_a_stage_takes_its_steps_from_the_budget(self, schedule: StepSchedule) -> None:
        for num_stages in self.stages:
            budget = schedule.budget(num_stages)
            steps = [schedule.steps(stage, budget) for stage in range(num_stages)]
            assert all(type(count) is int and count >= 1 for count in steps)
            assert tuple(steps) == budget  # also of an adaptive one, as long as it has seen nothing

    def test_saved_and_loaded_it_is_the_same(self, schedule: StepSchedule, tmp_path: Path) -> None:
        path = tmp_path / "schedule.yaml"
        schedule.save(path)
        loaded = load_schedule(path)
        assert type(loaded) is type(schedule)
        assert loaded.arguments == schedule.arguments
        for num_stages in self.stages:
            assert loaded.budget(num_stages) == schedule.budget(num_stages)

    def test_it_prints_its_class_and_arguments(self, schedule: StepSchedule) -> None:
        text = str(schedule)
        assert text.startswith(type(schedule).__name__)
        for name, value in schedule.arguments.items():
            assert f"{name}={value!r}" in text

    def test_it_plots_one_point_a_stage(self, schedule: StepSchedule) -> None:
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        for num_stages in self.stages:
            axes = schedule.plot(num_stages)
            stages, steps = axes.lines[0].get_data()
            plt.close("all")
            assert np.array_equal(stages, np.arange(num_stages))
            assert np.array_equal(steps, schedule.budget(num_stages))
