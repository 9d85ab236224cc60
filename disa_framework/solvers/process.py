"""Processes: how a head was trained to corrupt tokens, `x_t = alpha_t x_0 + sigma_t noise`.

A process also says what the head predicts, so that a solver can turn its output into noise or clean tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from disa_framework.runtime.devices import constant
from disa_framework.values import LATER

if TYPE_CHECKING:
    from disa_framework.solvers.table import Table

Factor = float | Tensor
"""Of token or noise in `x_t`, for all tokens or for each."""

Prediction = Literal["noise", "v"]
T = TypeVar("T")


@dataclass(frozen=True)
class Nodes:
    """Points on the way from noise to tokens, in float64: one entry a point, noise first.

    Attributes:
        times: what the head is told (VP: 0 … 999, and -1 for clean; flow: 1 … 0).
        alphas, sigmas: factors of token and noise in `x_t`.
    """

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.times) == len(self.alphas) == len(self.sigmas):
            raise ValueError("nodes need as many alphas and sigmas as times")

    def __len__(self) -> int:
        return len(self.times)

    def __add__(self, other: Nodes) -> Nodes:
        """These nodes, then others."""
        return Nodes(self.times + other.times, self.alphas + other.alphas, self.sigmas + other.sigmas)

    def take(self, indices: Sequence[int]) -> Nodes:
        """The nodes at `indices`, in that order."""
        columns = (self.times, self.alphas, self.sigmas)
        return Nodes(*(tuple(values[i] for i in indices) for values in columns))

    def on(self, device: torch.device) -> Tensor:
        """The times on a device, in float32."""
        return constant(self.times, torch.float32, device)


def log_ratio(alpha: float, sigma: float) -> float:
    """`log(alpha / sigma)`, infinite where one of them is 0."""
    if alpha == 0:
        return -math.inf
    return math.log(alpha / sigma) if sigma else math.inf


class Process(ABC):
    """What a diffusion head was trained on."""

    learns_variance: bool = False
    """Whether the head has `2 D` outputs: prediction and variance value."""

    clean: ClassVar[float] = 0.0
    """The time of clean tokens."""

    solvers: ClassVar[str] = "one that is made for it"
    """Which solvers draw from such a head, for messages."""

    grids: ClassVar[str] = "one that is made for it"
    """Which grids place steps for such a head, for messages."""

    @abstractmethod
    def nodes(self, times: Sequence[float]) -> Nodes:
        """The nodes at the given times."""

    @abstractmethod
    def unit_time(self, time: float) -> float:
        """The head's time on the scale from 0 (token) to 1 (noise), on which intervals are given."""

    @abstractmethod
    def at_unit_time(self, unit: float) -> float:
        """The head's time for one on that scale."""

    def from_noise(self, time: float) -> float:
        """Where a grid begins that would like to begin at `time`, where tokens are noise, or nearly so."""
        return time

    def log_snr(self, time: float) -> float:
        """`lambda = log(alpha / sigma)` at a time; infinite where there is no noise, or nothing else."""
        at = self.nodes([time])
        return log_ratio(at.alphas[0], at.sigmas[0])

    @abstractmethod
    def time_at(self, log_snr: float) -> float:
        """The time of a log-SNR."""

    @abstractmethod
    def to_noise(self, alpha: float, sigma: float) -> tuple[float, float]:
        """`(P, Q)` such that `noise = P x + Q out`."""

    @abstractmethod
    def to_clean(self, alpha: float, sigma: float) -> tuple[float, float]:
        """`(P, Q)` such that `x_0 = P x + Q out`."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, alpha: Factor | None = None, sigma: Factor | None = None) -> Tensor:
        """What the head should predict for this pair, mixed with the factors `alpha` and `sigma`.

        Raises:
            ValueError: if it depends on the factors, and they are not given.
        """

    def runs(self, table: Table) -> bool:
        """Whether such a head can be run along a table; most can along any."""
        return True


@dataclass(frozen=True)
class VPCosine(Process):
    """Variance-preserving process with cosine betas (Nichol & Dhariwal, arXiv 2102.09672, eq. 17).

    The head predicts from a timestep 0 … `timesteps - 1`.

    Args:
        timesteps: number of training timesteps.
        learns_variance: whether the head also predicts the variance value of eq. 15.
        predicts: the noise, or `v = alpha noise - sigma x_0` (Salimans & Ho, arXiv 2202.00512, appendix D).
        max_beta: most noise that a timestep adds, which is reached at the last ones alone. With 0.999 the last is noise
            alone; UniPic-1 has 0.2.

    Raises:
        ValueError: max_beta does not lie between 0 and 1.
    """

    timesteps: int = 1000
    learns_variance: bool = False
    predicts: Prediction = field(default="noise", metadata=LATER)
    max_beta: float = field(default=0.999, metadata=LATER)
    clean: ClassVar[float] = -1.0
    solvers: ClassVar[str] = "DDPM, DDIM or DPMSolverPP"
    grids: ClassVar[str] = "Spaced"

    def __post_init__(self) -> None:
        known = get_args(Prediction)
        if self.predicts not in known:
            raise ValueError(f"predicts must be one of {', '.join(known)}, got {self.predicts!r}")
        if not 0 < self.max_beta < 1:
            raise ValueError(f"max_beta must lie between 0 and 1, got {self.max_beta}")

    @cached_property
    def betas(self) -> tuple[float, ...]:
        """Noise added at each timestep, at most `max_beta`."""

        def bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        n = self.timesteps
        return tuple(min(1 - bar((i + 1) / n) / bar(i / n), self.max_beta) for i in range(n))

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """`alpha_bar` after each timestep."""
        return tuple(accumulate((1.0 - beta for beta in self.betas), lambda a, b: a * b))

    def alpha_bar(self, index: float) -> float:
        """`alpha_bar` at a timestep; between two, its logarithm is interpolated; -1 is clean."""
        if not -1 <= index <= self.timesteps - 1:
            raise ValueError(f"timestep must lie in [-1, {self.timesteps - 1}], got {index}")
        low = math.floor(index)
        below = self.alphas_cumprod[low] if low >= 0 else 1.0
        if low == index:
            return below
        fraction = index - low
        return math.exp((1 - fraction) * math.log(below) + fraction * math.log(self.alphas_cumprod[low + 1]))

    def nodes(self, times: Sequence[float]) -> Nodes:
        bars = [self.alpha_bar(t) for t in times]
        return Nodes(tuple(map(float, times)), tuple(map(math.sqrt, bars)), tuple(math.sqrt(1 - bar) for bar in bars))

    def unit_time(self, time: float) -> float:
        return time / self.timesteps

    def at_unit_time(self, unit: float) -> float:
        return unit * self.timesteps

    def time_at(self, log_snr: float) -> float:
        bar = 1 / (1 + math.exp(-2 * log_snr))
        # Values of alpha_bar fall, and between two timesteps their logarithm is a straight line.
        above = bisect_right(self.alphas_cumprod, -bar, key=lambda value: -value)
        if above == self.timesteps:
            return float(self.timesteps - 1)
        high, low = (self.alphas_cumprod[above - 1] if above else 1.0), self.alphas_cumprod[above]
        return above - 1 + math.log(bar / high) / math.log(low / high)

    def to_noise(self, alpha: float, sigma: float) -> tuple[float, float]:
        return (0.0, 1.0) if self.predicts == "noise" else (sigma, alpha)

    def to_clean(self, alpha: float, sigma: float) -> tuple[float, float]:
        return (1 / alpha, -sigma / alpha) if self.predicts == "noise" else (alpha, -sigma)

    def target(self, clean: Tensor, noise: Tensor, alpha: Factor | None = None, sigma: Factor | None = None) -> Tensor:
        if self.predicts == "noise":
            return noise
        if alpha is None or sigma is None:
            raise ValueError("what a head that predicts v should predict depends on the time: give alpha and sigma")
        return alpha * noise - sigma * clean


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight path `x_t = (1 - t) x_0 + t noise`; the head predicts the velocity `noise - x_0`
    (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003)."""

    solvers: ClassVar[str] = "Euler, Heun or EulerMaruyama"
    grids: ClassVar[str] = "Uniform"

    def nodes(self, times: Sequence[float]) -> Nodes:
        if not all(0 <= t <= 1 for t in times):
            raise ValueError(f"flow times must lie in [0, 1], got {tuple(times)}")
        return Nodes(tuple(map(float, times)), tuple(1.0 - t for t in times), tuple(map(float, times)))

    def unit_time(self, time: float) -> float:
        return time

    def at_unit_time(self, unit: float) -> float:
        return unit

    def from_noise(self, time: float) -> float:
        return 1.0

    def time_at(self, log_snr: float) -> float:
        return 1 / (1 + math.exp(log_snr))

    def to_noise(self, alpha: float, sigma: float) -> tuple[float, float]:
        return 1.0, alpha

    def to_clean(self, alpha: float, sigma: float) -> tuple[float, float]:
        return 1.0, -sigma

    def target(self, clean: Tensor, noise: Tensor, alpha: Factor | None = None, sigma: Factor | None = None) -> Tensor:
        return noise - clean


def of_kind(process: Process, options: Mapping[type[Process], T]) -> T:
    """The option for the class of a process, or for one that it is derived from."""
    return next(option for kind, option in options.items() if isinstance(process, kind))
