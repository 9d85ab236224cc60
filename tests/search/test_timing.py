"""Limits that are met on the clock, on machines of a known speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from disa_framework.schedules import PerStage
from disa_framework.search.cost import CostModel
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs
from disa_framework.search.space import Setting
from disa_framework.search.timing import meeting_the_limit
from disa_framework.solvers import DDPM
from tests.search.small import STAGES, mixture_meter

LIMIT = 1.0  # seconds, in which a hundred steps were to fit


class Machine:
    """Takes a hundredth of a second for a step, times its slowness; keeps what it was asked to time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowness: float) -> None:
        self.meter: Meter = mixture_meter()
        self.base = Setting.of(self.meter.module)  # 12 steps at each stage: 0.48 s
        cost = CostModel(0.0, (0.0,) * STAGES, (0.01,) * STAGES, self.meter.module.model.process, DDPM())
        self.costs = Costs(self.meter.module, lambda _: cost)
        self.asked: list[float] = []

        def latencies(settings: Sequence[Setting]) -> list[float]:
            return [0.01 * slowness * sum(setting.budget) for setting in settings]

        monkeypatch.setattr(self.meter, "latencies", latencies)

    def find(self, limit: float) -> Setting:
        self.asked.append(limit)
        return replace(self.base, schedule=PerStage([int(100 * limit + 1e-9) - 6, 3, 2, 1]))


def test_what_takes_as_long_as_predicted_needs_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=0.97)
    timed = meeting_the_limit(machine.meter, machine.costs, machine.find, LIMIT, [machine.base])
    assert machine.asked == [LIMIT] and timed.limit == LIMIT
    assert timed.latencies == pytest.approx((0.97, 0.97 * 0.48))
    assert str(timed) == (
        "timed, it takes 970 ms an image, within the limit of 1000; "
        "the baseline, timed in turn with it, takes 0.48 times as long"
    )


@pytest.mark.parametrize("slowness", [1.0, 1.2, 3.0])
def test_what_takes_longer_is_found_within_less(slowness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness)
    timed = meeting_the_limit(machine.meter, machine.costs, machine.find, LIMIT, [machine.base])
    assert 2 <= len(machine.asked) <= 3 and timed.setting.budget[1:] == (3, 2, 1)
    assert 0.89 * LIMIT < timed.latencies[0] <= 0.98 * LIMIT


def test_a_speedup_is_over_the_baseline_of_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=2.0)
    timed = meeting_the_limit(machine.meter, machine.costs, machine.find, 0.24, [machine.base], speedup=2.0)
    assert timed.limit == pytest.approx(0.48)  # all is half as fast as when the limit was made
    assert 20 <= sum(timed.setting.budget) <= 23  # of 24: only the room that is left for timing it again
    assert timed.latencies[1] / timed.latencies[0] >= 2.0


def test_a_setting_that_leaves_some_of_the_limit_is_shortened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=1.5)
    given = machine.find(0.8)

    def shortened(most: float) -> Setting:
        return given if machine.costs(given) <= most else machine.find(most)

    timed = meeting_the_limit(machine.meter, machine.costs, shortened, LIMIT, [machine.base])
    assert len(machine.asked) == 2 and 0.9 * LIMIT < timed.latencies[0] <= 0.98 * LIMIT


def test_a_slow_spell_while_it_is_timed_costs_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=1.0)
    usual, spells = machine.meter.latencies, iter([1.6, 1.0, 1.0, 1.0])
    monkeypatch.setattr(machine.meter, "latencies", lambda settings: [next(spells) * usual(settings)[0], 0.48])
    timed = meeting_the_limit(machine.meter, machine.costs, machine.find, LIMIT, [machine.base])
    assert machine.asked == pytest.approx([1.0, 0.58, 0.93], abs=0.01)
    assert 0.9 * LIMIT <= timed.latencies[0] <= 0.98 * LIMIT


def test_what_never_meets_the_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=9.0)
    timed = meeting_the_limit(
        machine.meter, machine.costs, lambda most: machine.find(max(most, 0.5)), LIMIT, [machine.base]
    )
    assert len(machine.asked) == 3 and sum(timed.setting.budget) == 50 and not timed.within
    assert "takes 4500 ms an image, above, though ever fewer steps were tried, the limit of 1000;" in str(timed)


def test_what_cannot_be_shortened_further_is_what_was_tried_last(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slowness=3.0)

    def find(most: float) -> Setting:
        if most < 0.3:
            raise ValueError("no budget costs so little")
        return machine.find(max(most, 0.5))

    timed = meeting_the_limit(machine.meter, machine.costs, find, LIMIT, [machine.base])
    assert sum(timed.setting.budget) == 50 and not timed.within
    with pytest.raises(ValueError, match="no budget costs so little"):
        meeting_the_limit(machine.meter, machine.costs, find, 0.2, [machine.base])
