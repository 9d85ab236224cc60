"""Stage sizes: how many tokens a masked model draws at each stage.

Letters: `N` tokens, `K` stages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random


class StageSizes(ABC):
    """Subclass as a frozen dataclass and implement `left`."""

    @abstractmethod
    def left(self, done: int, num_stages: int) -> float:
        """The share of the tokens that is left after so many of `K` stages, falling from 1 to 0."""

    @property
    def num_stages(self) -> int | None:
        """The number of stages that they are for; any number where it is None."""
        return None

    def whole(self, tokens: float) -> int:
        """A number of tokens that are left as a whole one, here rounded down."""
        return math.floor(tokens)

    def sizes(self, num_tokens: int, num_stages: int) -> tuple[int, ...]:
        """How many tokens each of the `K` stages draws, one at least.

        Raises:
            ValueError: if there are no such sizes.
        """
        _check(num_tokens, num_stages)
        before, found = num_tokens, []
        for k in range(1, num_stages):
            wanted = self.whole(num_tokens * self.left(k, num_stages))
            after = max(num_stages - k, min(before - 1, wanted))
            found.append(before - after)
            before = after
        return (*found, before)


@dataclass(frozen=True)
class CosineSizes(StageSizes):
    """Few tokens first, and more at every stage, as published for MAR (arXiv 2406.11838)."""

    def left(self, done: int, num_stages: int) -> float:
        return math.cos(math.pi / 2 * done / num_stages)  # rounded as in the published code


@dataclass(frozen=True)
class RoundedCosineSizes(CosineSizes):
    """As published for NOVA (arXiv 2412.14169): `CosineSizes` to the nearest number, to the even one of two.

    Where this leaves a stage without a token, the published code leaves out the stage, and here it draws one.
    """

    def whole(self, tokens: float) -> int:
        return round(tokens)


@dataclass(frozen=True)
class LinearSizes(StageSizes):
    """As many at every stage, up to one."""

    def left(self, done: int, num_stages: int) -> float:
        return 1 - done / num_stages

    def sizes(self, num_tokens: int, num_stages: int) -> tuple[int, ...]:
        _check(num_tokens, num_stages)
        ends = [round(num_tokens * k / num_stages) for k in range(num_stages + 1)]
        return tuple(end - start for start, end in pairwise(ends))


@dataclass(frozen=True)
class ExponentialSizes(StageSizes):
    """`1 - exp(-rate (1 - progress))` is left: most tokens come last (eMIGM, arXiv 2503.07197).

    Args:
        rate: the larger, the later tokens come.
    """

    rate: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 100:
            raise ValueError(f"rate must be above 0 and at most 100, got {self.rate}")

    def left(self, done: int, num_stages: int) -> float:
        return math.expm1(-self.rate * (1 - done / num_stages)) / math.expm1(-self.rate)


@dataclass(frozen=True)
class BinomialSizes(ExponentialSizes):
    """As published for eMIGM: at each stage every token that is left is drawn with the probability that gives
    `ExponentialSizes` in the mean, one token at least. All samples have the same sizes.

    Args:
        rate: as of `ExponentialSizes`.
        seed: of the sizes.
    """

    seed: int = 0

    def sizes(self, num_tokens: int, num_stages: int) -> tuple[int, ...]:
        _check(num_tokens, num_stages)
        return _drawn(self, num_tokens, num_stages)


@lru_cache(maxsize=256)
def _drawn(sizes: BinomialSizes, num_tokens: int, num_stages: int) -> tuple[int, ...]:
    numbers, left, found = Random(sizes.seed), num_tokens, list[int]()
    for k in range(num_stages - 1):
        share = 1 - sizes.left(k + 1, num_stages) / sizes.left(k, num_stages)
        count = sum(numbers.random() < share for _ in range(left))
        found.append(min(max(count, 1), left - (num_stages - 1 - k)))
        left -= found[-1]
    return (*found, left)


@dataclass(frozen=True)
class ListedSizes(StageSizes):
    """Sizes that are given.

    Args:
        each: of the stages, one token at least.
    """

    each: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "each", tuple(self.each))
        if not self.each or any(not isinstance(size, int) or size < 1 for size in self.each):
            raise ValueError(f"every stage draws a whole number of tokens, one at least, got {self.each}")

    @property
    def num_stages(self) -> int:
        return len(self.each)

    def left(self, done: int, num_stages: int) -> float:
        return 1 - sum(self.each[:done]) / sum(self.each)

    def sizes(self, num_tokens: int, num_stages: int) -> tuple[int, ...]:
        if sum(self.each) != num_tokens or len(self.each) != num_stages:
            raise ValueError(
                f"these sizes are of {sum(self.each)} tokens in {len(self.each)} stages, "
                f"the model draws {num_tokens} in {num_stages}"
            )
        return self.each


def _check(num_tokens: int, num_stages: int) -> None:
    if not 1 <= num_stages <= num_tokens:
        raise ValueError(f"{num_tokens} tokens are drawn in 1 … {num_tokens} stages, got {num_stages}")
