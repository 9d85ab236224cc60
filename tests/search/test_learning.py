"""What is learned from shifts that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from disa_framework.measure.cost import CostModel
from disa_framework.search import Profile, learn
from disa_framework.solvers import DDIM, Spaced, VPCosine

MENU = (2, 4, 8, 16, 32, 64)


def profile(*sizes: float, directions: Tensor | None = None) -> Profile:
    """Stages that err by `size / T` in directions of their own, or in those that are given `[K, F]`."""
    along = torch.eye(len(sizes)) if directions is None else directions
    weights = torch.tensor(sizes)[:, None, None] / torch.tensor(MENU, dtype=torch.float32)[None, :, None]
    return Profile(MENU, weights * along[:, None])


def test_steps_go_with_the_root_of_the_errors() -> None:
    # The sum of c_k / T_k under a limit on the sum of T_k is least with T_k in proportion to the root of c_k.
    budget = learn(profile(16.0, 4.0, 1.0, 1.0), 80).budget(4)
    assert sum(budget) == 80
    assert all(abs(steps - ideal) <= 1.5 for steps, ideal in zip(budget, (40, 20, 10, 10), strict=True))


def test_dear_stages_get_fewer_steps() -> None:
    cost = CostModel(30.0, (0.0, 0.0), (9.0, 1.0), VPCosine(), DDIM(Spaced()))
    budget = learn(profile(1.0, 1.0), 150, cost).budget(2)
    assert 9 * budget[0] + budget[1] <= 120
    assert abs(budget[0] - 10) <= 1.5 and abs(budget[1] - 30) <= 4


def test_stages_that_make_up_for_each_other_can_have_few_steps() -> None:
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    found = learn(profile(4.0, 4.0, 1.0, directions=opposite), 60)
    budget = found.budget(3)
    assert abs(budget[0] - budget[1]) <= 2 and budget[2] > 1.4 * budget[0]
    assert profile(4.0, 4.0, 1.0).schedule(60).budget(3)[2] < budget[2]


@pytest.mark.parametrize("limit", [8, 9.5, 31, 70, 255.5, 1000])
def test_the_limit_always_holds(limit: float) -> None:
    budget = learn(profile(3.0, 0.2, 1.0, 0.1), limit).budget(4)
    assert sum(budget) <= limit and min(budget) >= 2 and max(budget) <= 64
    assert sum(budget) > min(limit, 256) - 1


def test_learning_twice_gives_the_same() -> None:
    assert learn(profile(3.0, 1.0), 30).budget(2) == learn(profile(3.0, 1.0), 30).budget(2)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest feasible cost is 4"):
        learn(profile(1.0, 1.0), 3)
    with pytest.raises(ValueError, match="at least 2 step counts"):
        learn(Profile((4,), torch.ones(2, 1, 3)), 100)
