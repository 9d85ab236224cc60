"""A limit in seconds is met on the clock, not only as predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disa_framework.search.meter import Meter
from disa_framework.search.objective import Costs
from disa_framework.search.space import Setting

_ATTEMPTS = 6
_USED = 0.98  # of a limit that what is found may take: who times it again will see a percent more or less
_ENOUGH = 0.9  # of it that what is found again should take at least
_AIMED = 0.96  # of it that is asked for when what was found takes more or less than these


@dataclass(frozen=True)
class Timed:
    """A setting that was timed, in turn with others.

    Attributes:
        setting: what was timed.
        limit: seconds per image; that of a speedup is what the baseline took at the same time, divided.
        latencies: seconds per image of the setting and of each of its rivals, of which the last one is the baseline.
    """

    setting: Setting
    limit: float
    latencies: tuple[float, ...]

    @property
    def within(self) -> bool:
        """Whether it meets the limit."""
        return self.latencies[0] <= self.limit

    def __str__(self) -> str:
        milliseconds, limit = 1000 * self.latencies[0], 1000 * self.limit
        faster = self.latencies[-1] / self.latencies[0]
        kept = "within" if self.within else "above, though ever fewer steps were tried,"
        return (
            f"timed, it takes {milliseconds:.4g} ms an image, {kept} the limit of {limit:.4g}; "
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
    """What is found within a limit in seconds, lowered as far as the clock says that it must be.

    Machines change speed. So rivals are timed in turn with the setting, and a speedup is over what the baseline takes
    then, not over what it took when the cost model was fitted. A slow spell may ask for too much; so what meets the
    limit by far is found again within more. Where nothing meets the limit, the result is what was tried last, and says
    so.

    Args:
        meter: times.
        costs: in seconds.
        find: a setting whose predicted cost is at most this; a ValueError if there is none.
        limit: greatest cost of an image.
        rivals: other settings to time; the last one is the baseline.
        speedup: so many times as fast as the baseline, if that is what the limit was made of.

    Raises:
        ValueError: of `find`, if it has nothing within the limit.
    """
    aim, timed = limit, None
    best: tuple[float, Timed] | None = None
    for _ in range(_ATTEMPTS):
        try:
            setting = find(aim)
        except ValueError:
            if timed is None:
                raise
            break
        if timed is not None and setting.key == timed.setting.key:
            break  # steps are whole, there is nothing in between
        latencies = meter.latencies([setting, *rivals])
        timed = Timed(setting, limit if speedup is None else latencies[-1] / speedup, tuple(latencies))
        cost = min(aim, costs(setting))  # of an adaptive schedule what is predicted is the most that it may take
        if latencies[0] <= _USED * timed.limit and (best is None or cost > best[0]):
            best = cost, timed
            if aim == limit or latencies[0] >= _ENOUGH * timed.limit:
                break
        aim = min(limit, cost * _AIMED * timed.limit / latencies[0])
    if best:
        return best[1]
    assert timed is not None
    return timed
