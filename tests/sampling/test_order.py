"""Orders of tokens and stage sizes: the contract, and what each of them promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.sampling.order import (
    CheckerboardOrder,
    HaltonOrder,
    ListedOrder,
    RandomOrder,
    RasterOrder,
    TokenOrder,
)
from disa_framework.sampling.stage_sizes import (
    CosineSizes,
    ExponentialSizes,
    LinearSizes,
    ListedSizes,
    RoundedCosineSizes,
    StageSizes,
)
from disa_framework.testing import OrderContract, StageSizesContract

NOISE = PhiloxNoise(0, torch.arange(3))


class TestOrders(OrderContract):
    @pytest.fixture(
        params=[RandomOrder(), RasterOrder(), HaltonOrder(), CheckerboardOrder(), CheckerboardOrder(5)], ids=str
    )
    def order(self, request: pytest.FixtureRequest) -> TokenOrder:
        return request.param


class TestListedOrder(OrderContract):
    shapes = ((2, 3), (1, 6))

    @pytest.fixture
    def order(self) -> TokenOrder:
        return ListedOrder((3, 0, 5, 1, 4, 2))


class TestStageSizes(StageSizesContract):
    @pytest.fixture(
        params=[CosineSizes(), RoundedCosineSizes(), LinearSizes(), ExponentialSizes(), ExponentialSizes(0.1)], ids=str
    )
    def sizes(self, request: pytest.FixtureRequest) -> StageSizes:
        return request.param


class TestListedSizes(StageSizesContract):
    cases = ((16, 4),)

    @pytest.fixture
    def sizes(self) -> StageSizes:
        return ListedSizes((1, 3, 4, 8))


def test_a_checkerboard_draws_coarse_levels_first() -> None:
    places = CheckerboardOrder(3).draw(NOISE, 8, 8)
    level = (places // 8 + places % 8).remainder(8)  # 0 of no level; 4 of level 3; 2 and 6 of level 2; odd of level 1
    assert (level[:, :8] == 0).all() and (level[:, 8:16] == 4).all()
    assert (level[:, 16:32] % 4 == 2).all() and (level[:, 32:] % 2 == 1).all()
    assert not torch.equal(places[0], places[1])  # within a level, samples differ


def test_the_beginning_of_a_halton_order_covers_the_image() -> None:
    places = HaltonOrder().draw(NOISE, 16, 16)[0, :16]
    quarters = (places // 16 // 8) * 2 + places % 16 // 8
    assert torch.bincount(quarters).min() >= 3


def test_sizes_are_the_published_ones() -> None:
    assert RoundedCosineSizes().sizes(64, 8) == (1, 4, 6, 8, 9, 12, 12, 12)
    assert RoundedCosineSizes().sizes(4096, 64)[:4] == (1, 4, 6, 9) and RoundedCosineSizes().sizes(4, 4) == (1,) * 4
    assert CosineSizes().sizes(100, 4) == (8, 22, 32, 38) and CosineSizes().sizes(16, 16) == (1,) * 16
    assert ExponentialSizes().sizes(256, 16) == (1, 1, 1, 2, 2, 3, 4, 6, 8, 10, 15, 20, 27, 37, 50, 69)
    assert LinearSizes().sizes(16, 5) == (3, 3, 4, 3, 3)


NONSENSE: dict[str, Callable[[], object]] = {
    "levels": lambda: CheckerboardOrder(0),
    "every place": lambda: ListedOrder((0, 2)),
    "of 2 tokens": lambda: ListedOrder((1, 0)).draw(NOISE, 2, 2),
    "rate": lambda: ExponentialSizes(0),
    "one at least": lambda: ListedSizes((3, 0)),
    "16 in 3": lambda: ListedSizes((8, 8)).sizes(16, 3),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_what_makes_no_sense_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NONSENSE[message]()
