"""Orders: which tokens a masked model draws when. How many are drawn at each stage is said by stage sizes.

Letters: `B` batch, `H`, `W` rows and columns of tokens, `N = H W`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from disa_framework.runtime.devices import constant
from disa_framework.sampling.noise import NoiseSource


class TokenOrder(ABC):
    """Subclass as a frozen dataclass and implement `draw`."""

    @abstractmethod
    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        """Places of the tokens, counted row by row, `[B, N]` int64, those that are drawn first in front; `[1, N]` if
        all samples have the same order.

        They may lie on the CPU, wherever the noise is.

        Args:
            noise: of the samples; what is random about an order comes from its `permutation`.
            height, width: `H`, `W`; a sequence has one row.

        Raises:
            ValueError: if there is no such order of so many tokens.
        """


@dataclass(frozen=True)
class RandomOrder(TokenOrder):
    """Another order for each sample, as published for MAR (arXiv 2406.11838)."""

    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        return noise.permutation(height * width).flip(1)  # the published code draws from the end


@dataclass(frozen=True)
class RasterOrder(TokenOrder):
    """Row by row."""

    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        return torch.arange(height * width)[None]


@dataclass(frozen=True)
class HaltonOrder(TokenOrder):
    """Places of the Halton sequence with the bases 2 and 3: any beginning covers the image evenly (Besnier et al.,
    arXiv 2503.17076)."""

    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        return torch.tensor([_halton(height, width)])


@dataclass(frozen=True)
class CheckerboardOrder(TokenOrder):
    """From coarse to fine: level `k` are the tokens of row `i` and column `j` with `(i + j) mod 2^k = 2^(k-1)`. What is
    of no level is drawn first, level 1, which is every other token, last (arXiv 2510.17171). Within a level the order
    is random.

    Args:
        levels: how many there are.
    """

    levels: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 1 <= self.levels <= 16:
            raise ValueError(f"levels must be a whole number from 1 to 16, got {self.levels!r}")

    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        sums = (torch.arange(height)[:, None] + torch.arange(width)).flatten()
        rank = torch.zeros_like(sums)
        for level in range(1, self.levels + 1):
            rank[sums % 2**level == 2 ** (level - 1)] = 1 + self.levels - level
        shuffled = noise.permutation(height * width)
        rank = constant((*rank.tolist(),), rank.dtype, shuffled.device)
        return shuffled.gather(1, rank[shuffled].argsort(dim=1, stable=True))  # at random within each level


@dataclass(frozen=True)
class ListedOrder(TokenOrder):
    """An order that is given.

    Args:
        places: of the tokens, counted row by row from 0, in the order in which they are drawn.
    """

    places: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", tuple(self.places))
        whole = all(isinstance(place, int) for place in self.places)
        if not whole or sorted(self.places) != [*range(len(self.places))] or not self.places:
            raise ValueError(f"an order has every place from 0 to {len(self.places) - 1} once, got {self.places}")

    def draw(self, noise: NoiseSource, height: int, width: int) -> Tensor:
        if len(self.places) != height * width:
            raise ValueError(f"this order is of {len(self.places)} tokens, the model draws {height * width}")
        return torch.tensor([self.places], dtype=torch.int64)


@cache
def _halton(height: int, width: int) -> tuple[int, ...]:
    """Places in the order in which the sequence comes to them."""
    seen: dict[int, None] = {}
    i = 0
    while len(seen) < height * width:
        i += 1
        seen.setdefault(int(_inverse(i, 2) * height) * width + int(_inverse(i, 3) * width))
    return tuple(seen)


def _inverse(number: int, base: int) -> float:
    """The radical inverse: the number's digits, mirrored behind the point."""
    value, unit = 0.0, 1.0
    while number:
        unit /= base
        number, digit = divmod(number, base)
        value += digit * unit
    return value
