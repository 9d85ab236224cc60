"""What every order of tokens and every rule of stage sizes have to hold."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import yaml

from disa_framework import values
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.sampling.order import TokenOrder
from disa_framework.sampling.stage_sizes import StageSizes


class OrderContract:
    """Subclass and override the fixture `order`.

    Attributes:
        shapes: rows and columns of tokens that the order is asked for.
    """

    shapes: Sequence[tuple[int, int]] = ((1, 1), (1, 16), (4, 4), (3, 5), (16, 16))

    @pytest.fixture
    def order(self) -> TokenOrder:
        raise NotImplementedError("override the fixture `order`")

    def test_every_token_is_drawn_once(self, order: TokenOrder) -> None:
        for height, width in self.shapes:
            places = order.draw(PhiloxNoise(3, torch.arange(4)), height, width)
            assert places.dtype == torch.int64 and len(places) in (1, 4)
            assert torch.equal(places.sort(dim=1).values, torch.arange(height * width).expand(len(places), -1))

    def test_the_order_of_a_sample_does_not_depend_on_its_batch(self, order: TokenOrder) -> None:
        for height, width in self.shapes:
            batch, alone = (order.draw(PhiloxNoise(3, torch.tensor(i)), height, width) for i in ([5, 2, 9], [2]))
            assert torch.equal(batch.expand(3, -1)[1:2], alone)

    def test_it_is_a_value(self, order: TokenOrder) -> None:
        read = values.load(TokenOrder, yaml.safe_load(yaml.safe_dump(values.dump(order))))
        assert read == order and hash(read) == hash(order)


class StageSizesContract:
    """Subclass and override the fixture `sizes`.

    Attributes:
        cases: numbers of tokens and stages that sizes are asked for.
    """

    cases: Sequence[tuple[int, int]] = ((1, 1), (16, 1), (16, 5), (16, 16), (256, 16), (256, 64), (256, 256))

    @pytest.fixture
    def sizes(self) -> StageSizes:
        raise NotImplementedError("override the fixture `sizes`")

    def test_every_stage_draws_a_token_at_least_and_all_of_them_all(self, sizes: StageSizes) -> None:
        for num_tokens, num_stages in self.cases:
            drawn = sizes.sizes(num_tokens, num_stages)
            assert len(drawn) == num_stages and sum(drawn) == num_tokens
            assert all(type(size) is int and size >= 1 for size in drawn)

    def test_what_is_left_falls_from_all_to_nothing(self, sizes: StageSizes) -> None:
        for _, num_stages in self.cases:
            left = [sizes.left(done, num_stages) for done in range(num_stages + 1)]
            assert left == sorted(left, reverse=True)
            assert left[0] == pytest.approx(1) and left[-1] == pytest.approx(0, abs=1e-12)

    def test_more_stages_than_tokens_are_refused(self, sizes: StageSizes) -> None:
        for num_stages in (0, 17):
            with pytest.raises(ValueError, match="stages"):
                sizes.sizes(16, num_stages)

    def test_it_is_a_value(self, sizes: StageSizes) -> None:
        read = values.load(StageSizes, yaml.safe_load(yaml.safe_dump(values.dump(sizes))))
        assert read == sizes and hash(read) == hash(sizes)
