"""What every step schedule has to hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import yaml

from disa_framework import values
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import StepSchedule


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
            assert budget == schedule.budget(num_stages)

    def test_no_stages_are_refused(self, schedule: StepSchedule) -> None:
        with pytest.raises(ValueError, match="stage"):
            schedule.budget(0)

    def test_a_stage_takes_its_steps_from_the_budget(self, schedule: StepSchedule) -> None:
        for num_stages in self.stages:
            budget = schedule.budget(num_stages)
            steps = [schedule.at(stage, budget) for stage in range(num_stages)]
            assert all(type(count) is int and count >= 1 for count in steps)
            assert tuple(steps) == budget  # also of an adaptive one, as long as it has seen nothing

    def test_it_is_a_value_that_nobody_changes(self, schedule: StepSchedule) -> None:
        twin = copy.deepcopy(schedule)
        assert twin == schedule and hash(twin) == hash(schedule)
        assert str(schedule).startswith(type(schedule).__name__)
        for field in fields(schedule):  # type: ignore[arg-type]
            with pytest.raises(FrozenInstanceError):
                setattr(schedule, field.name, getattr(twin, field.name))

    def test_it_checks_itself_when_it_is_made(self, schedule: StepSchedule) -> None:
        for field in fields(schedule):  # type: ignore[arg-type]
            with pytest.raises((ValueError, TypeError)):
                replace(schedule, **{field.name: "nonsense"})  # type: ignore[type-var]

    def test_written_and_read_it_is_the_same(self, schedule: StepSchedule) -> None:
        sampling = SamplingConfig(schedule)
        for value in (schedule, sampling):
            kind = StepSchedule if value is schedule else SamplingConfig
            text = yaml.safe_dump(values.dump(value))
            read = values.load(kind, yaml.safe_load(text))
            assert read == value and hash(read) == hash(value)

    def test_it_plots_one_point_a_stage(self, schedule: StepSchedule) -> None:
        for num_stages in self.stages:
            points = np.asarray(schedule.plot(num_stages).lines[0].get_xydata())
            assert [tuple(point) for point in points] == list(enumerate(schedule.budget(num_stages)))
