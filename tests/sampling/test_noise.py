"""Random numbers are a function of seed, sample, stage and draw."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from disa_framework import PhiloxNoise
from disa_framework.sampling.noise import _unit, philox, philox_factors

SEEDS = [0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 2]


def noise(seed: int = 3, indices: Sequence[int] = (0,)) -> PhiloxNoise:
    return PhiloxNoise(seed, torch.tensor(indices))


# Counter, key and output, from the file kat_vectors of the Random123 distribution.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_known_answers(counter: str, key: str, answer: str) -> None:
    k0, k1 = (int(word, 16) for word in key.split())
    words = torch.tensor([int(word, 16) for word in counter.split()])
    even, odd = philox(words[0::2], words[1::2], philox_factors(k0 | k1 << 32))
    assert [f"{word:08x}" for word in torch.stack((even, odd), dim=1).flatten().tolist()] == answer.split()


# --- distribution ---------------------------------------------------------------------------------------


def test_normals_are_normal() -> None:
    x = noise(indices=range(50)).normal(2, (50, 4), 5, torch.float64).flatten()
    assert x.isfinite().all()
    moments = [(x**power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)  # five standard errors of the fourth
    assert scipy.stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    low, high = _unit(torch.tensor([0, 2**32 - 1])).tolist()
    assert 0 < low < high < 1  # so that no word gives an infinite one


def test_neighbouring_normals_are_independent() -> None:
    # The four numbers of one counter, and those of the next.
    x = noise(indices=range(5000)).normal(0, (8,), 1, torch.float64)[0]
    for values in (x, x.square()):
        correlations = torch.corrcoef(values.T) - torch.eye(8)
        assert correlations.abs().max() < 5 / 5000**0.5


def streams() -> dict[str, Tensor]:
    """Two thousand numbers for each of several places that differ in one coordinate."""

    def numbers(seed: int = 3, index: int = 0, stage: int = 0, draw: int = 0) -> Tensor:
        return noise(seed, [index]).normal(stage, (2000,), draw + 1, torch.float64)[draw, 0]

    changes = [("index", 1), ("index", 2**32 - 1), ("stage", 1), ("stage", 255), ("draw", 1), ("draw", 100)]
    others = {f"{name} {value}": numbers(**{name: value}) for name, value in changes}
    return {"reference": numbers(), **others, **{f"seed {seed}": numbers(seed=seed) for seed in SEEDS}}


def test_seed_sample_stage_and_draw_are_independent_of_each_other() -> None:
    values = torch.stack(list(streams().values()))
    correlations = torch.corrcoef(values) - torch.eye(len(values))
    assert correlations.abs().max() < 5 / 2000**0.5


# --- a function of its arguments --------------------------------------------------------------------------


def test_a_sample_has_its_numbers_in_every_batch() -> None:
    indices = [7, 2**32 - 1, 0, 3]
    batch = noise(indices=indices).normal(4, (3, 5), 6)
    orders = noise(indices=indices).permutation(9)
    for place, index in enumerate(indices):
        assert torch.equal(noise(indices=[index]).normal(4, (3, 5), 6)[:, 0], batch[:, place])
        assert torch.equal(noise(indices=[index]).permutation(9)[0], orders[place])


def test_the_order_of_calls_does_not_matter() -> None:
    first, second = noise(), noise()
    second.permutation(4)
    second.normal(5, (2, 2), 3)
    assert torch.equal(first.normal(1, (2, 2), 2), second.normal(1, (2, 2), 2))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (5, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_depend_neither_on_how_many_there_are_nor_on_their_precision(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    source, before = noise(indices=[0, 9]), torch.get_rng_state()
    normals = source.normal(1, shape, 2, dtype)
    assert normals.shape == (2, 2, *shape) and normals.dtype == dtype
    assert torch.equal(normals, source.normal(1, shape, 50, torch.float64)[:2].to(dtype))
    source.permutation(5)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


# --- permutations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 64, 256])
def test_permutations_are_permutations(length: int) -> None:
    orders = noise(indices=range(20)).permutation(length)
    assert orders.shape == (20, length) and orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=1).values, torch.arange(length).expand(20, -1))


def test_all_permutations_are_equally_likely() -> None:
    orders = noise(indices=range(24_000)).permutation(4).tolist()
    counts = [orders.count(list(order)) for order in itertools.permutations(range(4))]
    assert sum(counts) == 24_000
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_permutations_are_not_made_of_the_numbers_of_a_stage() -> None:
    ranks = noise(indices=range(200)).permutation(16).argsort(dim=1).double()
    for stage in (0, 1):
        x = noise(indices=range(200)).normal(stage, (16,), 1, torch.float64)[0]
        assert abs(np.corrcoef(ranks.flatten(), x.flatten())[0, 1]) < 5 / 3200**0.5


# --- inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_indices_may_be_integers_of_any_width(dtype: torch.dtype) -> None:
    indices = torch.tensor([0, 7, 100])
    narrow, wide = PhiloxNoise(3, indices.to(dtype)), PhiloxNoise(3, indices)
    assert torch.equal(narrow.normal(1, (2, 3), 2), wide.normal(1, (2, 3), 2))
    assert torch.equal(narrow.permutation(9), wide.permutation(9))


@pytest.mark.parametrize(
    ("seed", "indices", "message"),
    [
        *((seed, torch.tensor([0]), r"64 bits.*got") for seed in (2**64, -(2**63) - 1, 10**30)),
        *((3, torch.ones(2, dtype=dtype), f"whole numbers, got {dtype}") for dtype in (torch.float32, torch.bool)),
        *((3, torch.tensor([0, index]), rf"indices must lie in 0 … 2\*\*32 - 1, got {index}") for index in (-1, 2**32)),
        (3, torch.zeros(2, 1, dtype=torch.int64), r"indices must be \[B\], got shape \(2, 1\)"),
    ],
)
def test_other_seeds_and_indices_are_refused(seed: int, indices: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhiloxNoise(seed, indices)
