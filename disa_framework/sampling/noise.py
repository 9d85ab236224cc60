"""Randomness as a function: sample `i` of a run depends on `(seed, i)` and on nothing else.

Letters: `B` batch, `N` tokens, `n` tokens of a stage, `D` token channels, `R` draws.

Numbers come from a counter-based generator, Philox 4x32-10 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011). Its key is the seed and its counter says which sample, stage and draw is meant,
so a number does not depend on the batch a sample fell into, on the rank, on the device, or on what was
drawn before. No state is kept and the global generators are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from disa_framework.runtime.devices import bring

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_PERMUTATION = _WORD  # the counter's stage word, for draws that belong to no stage


class NoiseSource(Protocol):
    """Where generation gets every random number from.

    Attributes:
        batch_size: `B`, how many samples it is for.
    """

    @property
    def batch_size(self) -> int: ...

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals `[draws, B, *shape]` of one stage; draw 0 is the initial noise."""
        ...

    def permutation(self, length: int) -> Tensor:
        """A random order `[B, length]` (int64) of `length` tokens for each sample."""
        ...


class PhiloxNoise:
    """Noise of the samples `indices` of the run `seed`.

    Args:
        seed: any integer of 64 bits, with or without sign.
        indices: `[B]` int64, the place of each sample in the run, 0 … 2**32 - 1.
        device: where the numbers are made; they are the same on every device up to float64 rounding.
    """

    def __init__(self, seed: int, indices: Tensor, device: torch.device | str = "cpu") -> None:
        if indices.ndim != 1:
            raise ValueError(f"indices must be [B], got shape {tuple(indices.shape)}")
        check_seed(seed)
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices must be whole numbers, got {indices.dtype}")
        indices = indices.to(torch.int64)
        outside = (indices < 0) | (indices > _WORD)
        if outside.any():
            raise ValueError(f"indices must lie in 0 … 2**32 - 1, got {indices[outside][0].item()}")
        self.seed, self.device = seed, torch.device(device)
        self.indices = bring(indices, self.device)
        self._factors = bring(philox_factors(seed), self.device)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """All that its numbers are made of."""
        return self.indices, self._factors

    @property
    def batch_size(self) -> int:
        return len(self.indices)

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = math.prod(shape)
        words = self._words(stage, draws, -(-count // 4))
        radius = torch.sqrt(-2.0 * torch.log(_unit(words[:2])))
        angle = (2.0 * math.pi) * _unit(words[2:])
        normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        # [2, R, B, blocks, 2] -> [R, B, blocks * 4]: a sample's numbers lie together, whatever B is.
        flat = normals.permute(1, 2, 3, 0, 4).flatten(2)[..., :count]
        return flat.to(dtype).unflatten(2, tuple(shape))

    def permutation(self, length: int) -> Tensor:
        words = self._words(_PERMUTATION, 1, length)
        return ((words[0, 0] << 31) | (words[1, 0] >> 1)).argsort(dim=-1, stable=True)

    def _words(self, stage: int, draws: int, blocks: int) -> Tensor:
        """Random 32-bit words `[4, R, B, blocks]` held in int64."""
        block = torch.arange(blocks, device=self.device).view(1, 1, -1)
        draw = torch.arange(draws, device=self.device).view(-1, 1, 1)
        sample = self.indices.view(1, -1, 1)
        even = torch.stack((block, torch.full_like(block, stage & _WORD)))
        odd = torch.stack(torch.broadcast_tensors(draw, sample))
        even, odd = philox(even, odd, self._factors)
        return torch.stack((even[0], odd[0], even[1], odd[1]))


def check_seed(seed: int) -> None:
    """Raises a ValueError unless a seed has 64 bits."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"a seed has 64 bits, -2**63 … 2**64 - 1, got {seed}")


def philox(even: Tensor, odd: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Philox 4x32-10 of 32-bit words held in int64, which broadcast against each other.

    Args:
        even: words 0 and 2 of the counters, `[2, ...]`.
        odd: words 1 and 3.
        factors: as `philox_factors` gives them.
    """
    multipliers, *keys = factors.view(1 + _ROUNDS, 2, *[1] * (even.ndim - 1))
    for key in keys:
        # A product of two 32-bit words wraps around in int64, which keeps its 64 bits as they are.
        products = (even * multipliers).flip(0)
        even, odd = ((products >> 32) & _WORD) ^ odd ^ key, products & _WORD
    return even, odd


def philox_factors(key: int) -> Tensor:
    """The multipliers `[0]` and the keys of each round `[1:]`, of a key of two 32-bit words: `[1 + rounds, 2]`."""
    words = [key & _WORD, (key >> 32) & _WORD]
    keys = [[(word + i * step) & _WORD for word, step in zip(words, _WEYL, strict=True)] for i in range(_ROUNDS)]
    return torch.tensor([_MULTIPLIERS, *keys])


def _unit(words: Tensor) -> Tensor:
    """Uniform float64 in the open interval (0, 1) from 32-bit words."""
    return (words.to(torch.float64) + 0.5) * 2.0**-32
