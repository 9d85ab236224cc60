"""Grids: at which times a solver evaluates the head. `T` steps have `T` evaluation times and an end."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from disa_framework.solvers.process import Nodes, Process, RectifiedFlow, VPCosine

_CLEAN = -1


class Grid(ABC):
    """Places steps in time. A grid of `T` steps may give fewer than `T` where some of them coincide."""

    @abstractmethod
    def nodes(self, process: Process, steps: int) -> Nodes:
        """The evaluation times, strictly decreasing, and the end.

        Raises:
            ValueError: if the grid does not fit the process or `steps` is below 1.
        """


def spaced_timesteps(steps: int, timesteps: int = 1000, clip: int | None = None) -> tuple[int, ...]:
    """Timesteps evenly spaced over `0 … timesteps - 1`, ascending, as published for MAR.

    The stride `(timesteps - 1) / (steps - 1)` is added up in floating point and rounded half to even;
    times above `clip` become `clip` and coincide.
    """
    stride = (timesteps - 1) / (steps - 1) if steps > 1 else 1.0
    place, kept = 0.0, []
    for _ in range(steps):
        kept.append(round(place))
        place += stride
    return _clipped(kept, clip)


def strided_timesteps(steps: int, timesteps: int = 1000, clip: int | None = None) -> tuple[int, ...]:
    """Timesteps `0, s, 2 s, …` for an integer stride `s` (DDIM, arXiv 2010.02502), ascending.

    Where no stride gives exactly `steps` of them, the range is shortened, by as little as will do.

    Raises:
        ValueError: below 2 steps, for which no stride exists.
    """
    if steps < 2:
        raise ValueError(f"an integer stride needs at least 2 steps, got {steps}; use the grid Spaced for 1")
    for length in range(timesteps, steps - 1, -1):
        for stride in range(1, length):
            if len(range(0, length, stride)) == steps:
                return _clipped(range(0, length, stride), clip)
    raise ValueError(f"{steps} steps do not fit {timesteps} timesteps")


def _clipped(times: Sequence[int], clip: int | None) -> tuple[int, ...]:
    return tuple(sorted({t if clip is None else min(t, clip) for t in times}))


@dataclass(frozen=True)
class Spaced(Grid):
    """Evenly spaced timesteps of a variance-preserving process, cut at `clip`, then clean.

    With `clip=950` (annealed MAR) 25, 50 and 100 steps evaluate the head 24, 48 and 96 times. One step goes
    straight from `clip` to clean.

    Args:
        clip: the largest timestep; `None` starts from the last one.
    """

    clip: int | None = None

    def __post_init__(self) -> None:
        _check_clip(self.clip)

    def nodes(self, process: Process, steps: int) -> Nodes:
        vp = _variance_preserving(self, process)
        check_steps(steps)
        # The spacing rule would keep timestep 0 alone, where noise is taken for a finished token.
        start = (self._start(vp),) if steps == 1 else spaced_timesteps(steps, vp.timesteps, self._start(vp))
        return vp.nodes((*reversed(start), _CLEAN))

    def _start(self, process: VPCosine) -> int:
        last = process.timesteps - 1
        return last if self.clip is None else min(self.clip, last)


@dataclass(frozen=True)
class Linspace(Grid):
    """Even steps from the last timestep down to 0, rounded, with clean in the place of 0: VibeVoice's published grid,
    and what diffusers calls `timestep_spacing="linspace"`. `Spaced` evaluates the head at timestep 0, too."""

    def nodes(self, process: Process, steps: int) -> Nodes:
        vp = _variance_preserving(self, process)
        check_steps(steps)
        stride = (vp.timesteps - 1) / steps  # multiplied after it is rounded, as published, which moves some halves
        places = {round(i * stride) for i in range(1, steps + 1)}
        return vp.nodes((*sorted(places - {0}, reverse=True), _CLEAN))


@dataclass(frozen=True)
class Strided(Grid):
    """Timesteps at an integer stride, cut at `clip`, then clean: the published grid for DDIM.

    No stride exists for some counts (37, 41, 43, …): the range is then shortened, and a warning says so.

    Args:
        clip: the largest timestep; `None` cuts nothing.
    """

    clip: int | None = 980

    def __post_init__(self) -> None:
        _check_clip(self.clip)

    def nodes(self, process: Process, steps: int) -> Nodes:
        vp = _variance_preserving(self, process)
        check_steps(steps)
        times = strided_timesteps(steps, vp.timesteps, self.clip)
        if not any(len(range(0, vp.timesteps, stride)) == steps for stride in range(1, vp.timesteps)):
            warnings.warn(
                f"no integer stride gives {steps} of {vp.timesteps} timesteps; this grid starts at "
                f"{times[-1]} instead. Use the grid Spaced for an even one.",
                stacklevel=2,
            )
        return vp.nodes((*reversed(times), _CLEAN))


@dataclass(frozen=True)
class Leading(Grid):
    """Multiples of `timesteps // T`, then clean: what diffusers calls leading. One step starts from the last timestep.

    Args:
        offset: added to all of them.
    """

    offset: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.offset, int) or self.offset < 0:
            raise ValueError(f"offset must be a whole number from 0 on, got {self.offset!r}")

    def nodes(self, process: Process, steps: int) -> Nodes:
        vp = _variance_preserving(self, process)
        check_steps(steps)
        last, stride = vp.timesteps - 1, vp.timesteps // steps
        if steps == 1:
            return vp.nodes((last, _CLEAN))
        if not stride or stride * (steps - 1) + self.offset > last:
            raise ValueError(f"{steps} steps with offset {self.offset} do not fit {vp.timesteps} timesteps")
        return vp.nodes((*(stride * i + self.offset for i in reversed(range(steps))), _CLEAN))


@dataclass(frozen=True)
class UniformTime(Grid):
    """Uniform in continuous time from `clip / 1000` to `1 / (clip + 1)`: the published grid for DPM-Solver.

    The head is told `1000 t`, a fraction. Discrete timestep `j` sits at
    `t = (j + 1) clip / (clip + 1) / 1000` and `log alpha` is interpolated between them. The end is not
    clean: `t = 1 / (clip + 1)`.

    Args:
        clip: the timestep to start from.
    """

    clip: int = 950

    def nodes(self, process: Process, steps: int) -> Nodes:
        vp = _variance_preserving(self, process)
        check_steps(steps)
        if not self.clip < vp.timesteps < self.clip * (self.clip + 1):
            raise ValueError(
                f"the grid UniformTime runs from clip / {vp.timesteps} down to 1 / (clip + 1), "
                f"which clip={self.clip} does not allow: use 950"
            )
        start, end = self.clip / vp.timesteps, 1 / (self.clip + 1)
        ts = linspace(start, end, steps)
        places = [min(t * (self.clip + 1) / start - 1, float(self.clip)) for t in ts]
        at = vp.nodes(places)
        return Nodes(tuple(vp.timesteps * t for t in ts), at.alphas, at.sigmas)


@dataclass(frozen=True)
class Uniform(Grid):
    """Uniform in `t` from 1 to `last`, then 0, for a linear flow.

    Args:
        last: where the last step starts. `None` makes all steps equal; the published Euler-Maruyama
            sampler of xAR uses 0.04.
    """

    last: float | None = None

    def nodes(self, process: Process, steps: int) -> Nodes:
        flow = _linear_flow(self, process)
        check_steps(steps)
        if self.last is None:
            return flow.nodes(linspace(1.0, 0.0, steps))
        return flow.nodes([*linspace(1.0, self.last, steps - 1), 0.0] if steps > 1 else [1.0, 0.0])

    def __post_init__(self) -> None:
        if self.last is not None and not 0 < self.last < 1:
            raise ValueError(f"the last step must start between 0 and 1, got last={self.last}")


@dataclass(frozen=True)
class Halves(Grid):
    """FlowAR's published grid: half of the steps from 1 to 0.3, the other half from 0.25 to 0, evenly in each.

    An odd count gives one step less than asked, except 1, which goes straight from noise to token.

    Args:
        uniform_at: the count whose steps are all equal, as the published code has it for 50; `None` for no count.
    """

    uniform_at: int | None = 50

    def nodes(self, process: Process, steps: int) -> Nodes:
        flow = _linear_flow(self, process)
        check_steps(steps)
        half = steps // 2
        if steps in (1, self.uniform_at):
            return flow.nodes(linspace(1.0, 0.0, steps))
        early = linspace(1.0, 0.3, half - 1) if half > 1 else [1.0]
        return flow.nodes([*early, *linspace(0.25, 0.0, half)])


def linspace(start: float, end: float, steps: int) -> list[float]:
    """The ends of `steps` even steps."""
    return [start + (end - start) * i / steps for i in range(steps)] + [end]


def check_steps(steps: int) -> None:
    """Raises a ValueError for less than one step."""
    if steps < 1:
        raise ValueError(f"a stage needs at least 1 diffusion step, got {steps}")


def _check_clip(clip: int | None) -> None:
    if clip is not None and clip < 1:
        raise ValueError(f"clip is the timestep to start from, at least 1, got {clip}")


def _variance_preserving(grid: Grid, process: Process) -> VPCosine:
    if not isinstance(process, VPCosine):
        raise ValueError(
            f"the grid {type(grid).__name__} is for variance-preserving heads, this one is "
            f"{type(process).__name__}: use {process.grids}"
        )
    return process


def _linear_flow(grid: Grid, process: Process) -> RectifiedFlow:
    if not isinstance(process, RectifiedFlow):
        raise ValueError(
            f"the grid {type(grid).__name__} is for linear flows, this head is {type(process).__name__}: "
            f"use {process.grids}"
        )
    return process
