"""A limit in seconds is met on the clock, not only as predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs
from disa_framework.search.space import Setting

_ATTEMPTS = 6
_USED, _AIMED = 0.98, 0.97  # of the limit, at most and when it was missed: timed again, times differ by a percent


@dataclass(frozen=True)
class Timed:
    """A setting that was timed, in turn with others.

    Attributes:
        setting: what was timed.
        limit: greatest cost of an image; where it is a speedup, of what the baseline took at the same time.
        latencies: seconds per image of the setting and of each of its rivals; empty where costs are no seconds.
    """

    setting: Setting
    limit: float
    latencies: tuple[float, ...] = ()

    def __str__(self) -> str:
        milliseconds, limit = 1000 * self.latencies[0], 1000 * self.limit
        faster = self.latencies[-1] / self.latencies[0]
        return (
            f"timed, it takes {milliseconds:.4g} ms an image, within the limit of {limit:.4g}; "
            f"the baseline, timed in turn with it, takes {faster:.3g} times as long"
        )


def meeting_the_limit(
    meter: Meter,
    costs: Costs,
    find: Callable[[float], Setting],
    limit: float,
    rivals: Sequence[Setting],
    speedup: float | None = None,
) -> Timed:
    """What is found within a limit; where costs are seconds, with a limit lowered until the clock says the same.

    Machines change speed. So rivals are timed in turn with the setting, and a speedup is over what the baseline takes
    then, not over what it took when the cost model was fitted.

    Args:
        meter: times.
        costs: in the unit of the limit.
        find: a setting whose predicted cost is at most this.
        limit: greatest cost of an image.
        rivals: other settings to time; the last one is the baseline.
        speedup: so many times as fast as the baseline, if that is what the limit was made of.

    Raises:
        ValueError: if what is found within ever lower limits takes too long nevertheless.
    """
    if costs.unit != "seconds":
        return Timed(find(limit), limit)
    aim = limit
    for _ in range(_ATTEMPTS):
        setting = find(aim)
        latencies = meter.latencies([setting, *rivals])
        allowed = limit if speedup is None else latencies[-1] / speedup
        if latencies[0] <= _USED * allowed:
            return Timed(setting, allowed, tuple(latencies))
        aim *= _AIMED * allowed / latencies[0]
    raise ValueError(
        f"the winner was to take {allowed:.6g} seconds per image, but with ever fewer steps it still takes "
        f"{latencies[0]:.6g} when it is timed: measure costs anew, or allow more"
    )
