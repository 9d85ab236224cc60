"""Grids for any process. At few steps, where they lie matters more than how many there are.

Two kinds: evenly in the log-SNR, or in a function of it, between two times, and then clean tokens; and along a curve
from noise all the way to clean tokens. Times are given from 0 (clean) to 1 (noise). A flow always begins at 1, for its
tokens are pure noise there and nowhere else.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from statistics import NormalDist

from disa_framework.solvers.grid import Grid, check_steps, linspace
from disa_framework.solvers.process import Nodes, Process
from disa_framework.values import LATER


@dataclass(frozen=True)
class _Between(Grid):
    """Evenly on some scale of `lambda = log(alpha / sigma)`, between two times.

    Args:
        first: where the first evaluation is.
        last: where the last evaluation is, whose step ends at clean tokens; 0 is the first timestep of a
            variance-preserving process.
        to_clean: whether there is this step. Without it tokens are those at `last`, as eMIGM has them.
    """

    first: float = 0.95
    last: float = 0.005
    to_clean: bool = field(default=True, kw_only=True, metadata=LATER)

    def __post_init__(self) -> None:
        if not 0 <= self.last < self.first < 1:
            raise ValueError(f"a grid needs 1 > first > last >= 0, got first={self.first}, last={self.last}")

    def nodes(self, process: Process, steps: int) -> Nodes:
        check_steps(steps)
        ends = [process.log_snr(process.at_unit_time(t)) for t in (self.first, self.last)]
        if math.isinf(ends[1]):
            raise ValueError("a flow has no noise at 0: give a grid a last time above it")
        start, end = map(self._bend, ends)
        count = steps - self.to_clean
        places = linspace(start, end, count) if count else [start]
        times = [process.time_at(self._unbend(place)) for place in places]
        return process.nodes([process.from_noise(times[0]), *times[1:], *[process.clean] * self.to_clean])

    @abstractmethod
    def _bend(self, log_snr: float) -> float:
        """The place on the scale."""

    @abstractmethod
    def _unbend(self, place: float) -> float:
        """The log-SNR at a place."""


@dataclass(frozen=True)
class LogSNR(_Between):
    """Evenly in the log-SNR (Lu et al., arXiv 2206.00927)."""

    def _bend(self, log_snr: float) -> float:
        return log_snr

    def _unbend(self, place: float) -> float:
        return place


@dataclass(frozen=True)
class Karras(_Between):
    """Evenly in `(sigma / alpha)^(1 / rho)` (Karras et al., arXiv 2206.00364, eq. 5).

    Args:
        first, last: as of `LogSNR`.
        rho: the larger, the nearer to even steps in the log-SNR; 7 is published.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho > 0:
            raise ValueError(f"rho must be above 0, got {self.rho}")

    def _bend(self, log_snr: float) -> float:
        return math.exp(-log_snr / self.rho)

    def _unbend(self, place: float) -> float:
        return -self.rho * math.log(place)


@dataclass(frozen=True)
class _Along(Grid):
    """Evenly in `u` from 1 to 0 where `curve(u)` is the time.

    Args:
        first: the time that stands for `u = 1`.
    """

    first: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.first < 1:
            raise ValueError(f"first must lie between 0 and 1, got {self.first}")

    def nodes(self, process: Process, steps: int) -> Nodes:
        check_steps(steps)
        start = process.from_noise(process.at_unit_time(self.first))
        unit = process.unit_time(start)
        times = [process.at_unit_time(unit * self._curve(u)) for u in self._places(steps)]
        return process.nodes([start, *times, process.clean])

    def _places(self, steps: int) -> list[float]:
        """`u` of all evaluations but the first."""
        return [1 - i / steps for i in range(1, steps)]

    @abstractmethod
    def _curve(self, u: float) -> float:
        """The time as a share of the first one, for `u` between 0 and 1."""


@dataclass(frozen=True)
class PowerTime(_Along):
    """`t = u^exponent`. 1 is uniform; above, steps are small near clean tokens."""

    exponent: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exponent > 0:
            raise ValueError(f"exponent must be above 0, got {self.exponent}")

    def _curve(self, u: float) -> float:
        return u**self.exponent


@dataclass(frozen=True)
class Shift(_Along):
    """`t = s u / (1 + (s - 1) u)` (Esser et al., arXiv 2403.03206, eq. 23). Above 1, steps are small near noise.

    Args:
        first: as of the others.
        shift: `s`.
        least: time of the last evaluation, as a share of the first one, as diffusers has it; by default the last step
            is as long as the others, in `u`.
    """

    shift: float = 3.0
    least: float | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shift > 0:
            raise ValueError(f"shift must be above 0, got {self.shift}")
        if self.least is not None and not 0 < self.least < 1:
            raise ValueError(f"least must lie between 0 and 1, got {self.least}")

    def _places(self, steps: int) -> list[float]:
        if self.least is None:
            return super()._places(steps)
        return linspace(1.0, self.least / (self.shift - (self.shift - 1) * self.least), steps - 1)[1:]

    def _curve(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)


@dataclass(frozen=True)
class Sway(_Along):
    """`t = 1 - (v + s (cos(pi v / 2) - 1 + v))` with `v = 1 - u` (Chen et al., arXiv 2410.06885, eq. 7). At -1, the
    default, steps are small near noise, as of a cosine; above 0 they are small near clean tokens."""

    strength: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.strength <= 2 / (math.pi - 2):
            raise ValueError(f"strength must lie in [-1, 2 / (pi - 2)], got {self.strength}")

    def _curve(self, u: float) -> float:
        v = 1 - u
        return 1 - (v + self.strength * (math.cos(math.pi / 2 * v) - 1 + v))


@dataclass(frozen=True)
class LogitNormal(_Along):
    """`t` at even quantiles of the logit-normal distribution (arXiv 2403.03206, eq. 19): small steps in between.

    Args:
        first: as of the others.
        mean: of the logit of `t`; below 0, steps are small nearer to clean tokens.
        std: of it.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def _curve(self, u: float) -> float:
        return 1 / (1 + math.exp(-self.mean - self.std * NormalDist().inv_cdf(u)))


@dataclass(frozen=True)
class Times(Grid):
    """Times that were found, for each number of steps; see `disa_framework.search.find_grid`.

    Args:
        table: for each number of steps, the times from 0 to 1 at which the head is evaluated, noise first. Other
            numbers of steps are laid along the next larger one's times, or the largest one's, in the log-SNR.
    """

    table: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        table = tuple(sorted((tuple(map(float, row)) for row in self.table), key=len))
        object.__setattr__(self, "table", table)
        if not table or len({len(row) for row in table}) < len(table) or not table[0]:
            raise ValueError("a table of times needs one row for each number of steps, from 1 on")
        for row in table:
            if any(b >= a for a, b in zip((math.inf, *row), (*row, 0.0), strict=True)) or row[0] > 1:
                raise ValueError(f"times must fall, from 1 at most and above 0, got {row}")

    def nodes(self, process: Process, steps: int) -> Nodes:
        check_steps(steps)
        row = next((row for row in self.table if len(row) >= steps), self.table[-1])
        times = [process.from_noise(process.at_unit_time(row[0])), *map(process.at_unit_time, row[1:])]
        return process.nodes([*_resampled(times, process, steps), process.clean])


def _resampled(times: list[float], process: Process, steps: int) -> list[float]:
    """The times, or as many as wanted along them, evenly in their number."""
    if len(times) == steps:
        return times
    curve = [process.log_snr(t) for t in times]
    places = linspace(0.0, len(times) - 1, steps - 1) if steps > 1 else [0.0]
    found = []
    for place in places:
        low = min(int(place), len(times) - 1)
        share = place - low
        if not share or not math.isfinite(curve[low]):
            found.append(times[low] + share * (times[min(low + 1, len(times) - 1)] - times[low]))
        else:
            found.append(process.time_at(curve[low] + share * (curve[low + 1] - curve[low])))
    return found
