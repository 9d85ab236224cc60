"""A schedule learned by gradient: one number of steps a stage, whole numbers at the end.

The model is frozen, and is not even run: a profile knows how far each step count at each stage shifts each quantile of
what comes out. To first order the shifts of all stages add up, with their signs, where the knapsack adds up their
sizes: stages that err in the same way are dearer, and stages that make up for each other cheaper. The mean size of the
sum is what is learned to be small; a multiplier makes the cost meet the limit (dual ascent).

Letters: `K` stages, `M` entries of the menu of step counts, `R` whole numbers in its range, `F` quantiles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from disa_framework.measure.cost import CostModel
from disa_framework.schedules import PerStage
from disa_framework.search.calibration import Profile, between

_UPDATES, _LR, _DUAL_LR, _STIFFNESS = 1000, 0.05, 0.05, 10.0


def learn(profile: Profile, limit: float, cost: CostModel | None = None) -> PerStage:
    """The schedule whose stages' shifts add up to the least, within a limit.

    Args:
        profile: of the model, as `measure_profile` gives it.
        limit: in the unit of the cost model; in steps of the whole run if there is none.
        cost: of budgets.

    Raises:
        ValueError: if no budget is within the limit, or the menu has fewer than two entries.
    """
    if len(profile.menu) < 2:
        raise ValueError(f"learning needs a menu of at least 2 step counts, got {[*profile.menu]}")
    with torch.inference_mode(False), torch.enable_grad():
        table = _Table(profile, cost)
        return PerStage(table.whole(table.learned(table.affordable(limit), limit), limit))


class _Table:
    """Error and cost at any number of steps within a profile's menu: shifts are straight lines in `1 / T` between
    its entries, and costs in `T` between whole numbers."""

    def __init__(self, profile: Profile, cost: CostModel | None) -> None:
        costs, self.fixed = profile.every_step().costs(cost)
        self.menu, self.shifts = profile.menu, profile.shifts.clone()
        self.costs = torch.tensor(costs, dtype=torch.float64)  # [K, R]

    def error(self, steps: Tensor) -> Tensor:
        """Mean size of the sum of the shifts at `steps [K]`, a scalar."""
        left, share = between(self.menu, steps)
        stages = torch.arange(len(self.shifts))
        shifts = torch.lerp(self.shifts[stages, left], self.shifts[stages, left + 1], share[:, None])  # [K, F]
        return shifts.sum(dim=0).abs().mean()

    def cost(self, steps: Tensor) -> Tensor:
        """Of all stages, a scalar."""
        place = steps.double() - self.menu[0]
        left = place.detach().long().clamp(max=self.costs.shape[1] - 2)
        below, above = (self.costs.gather(1, at[:, None]).squeeze(1) for at in (left, left + 1))
        return self.fixed + torch.lerp(below, above, place - left).sum()

    def affordable(self, limit: float) -> Tensor:
        """The same steps at every stage, as many as the limit allows, `[K]`."""
        ones = torch.ones(len(self.costs))
        low, high = (math.log(self.menu[j]) for j in (0, -1))
        if (cheapest := self.cost(ones * self.menu[0]).item()) > limit:
            raise ValueError(f"no budget costs at most {limit}: the cheapest feasible cost is {cheapest}")
        for _ in range(30):
            middle = (low + high) / 2
            fits = self.cost(ones * math.exp(middle)).item() <= limit
            low, high = (middle, high) if fits else (low, middle)
        return ones * math.exp(low)

    def learned(self, start: Tensor, limit: float) -> Tensor:
        """Steps `[K]` of least error, near the limit."""
        log_steps = start.log().requires_grad_()
        optimizer = torch.optim.Adam([log_steps], lr=_LR)
        scale, room, multiplier = max(self.error(start).item(), 1e-12), max(limit - self.fixed, 1e-12), 0.0
        for _ in range(_UPDATES):
            steps = log_steps.exp().clamp(self.menu[0], self.menu[-1])
            excess = (self.cost(steps) - limit) / room
            loss = self.error(steps) / scale + multiplier * excess + _STIFFNESS / 2 * excess.clamp(min=0).square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            multiplier = max(0.0, multiplier + _DUAL_LR * excess.item())
        return log_steps.detach().exp().clamp(self.menu[0], self.menu[-1])

    def whole(self, steps: Tensor, limit: float) -> tuple[int, ...]:
        """Whole steps within the limit: rounded down, and then one by one where a step pays most."""
        steps = steps.floor()
        while self.cost(steps) > limit:
            steps = (steps - 1).clamp(min=self.menu[0])
        ones = torch.eye(len(steps))
        while affordable := [more for more in steps + ones if more.max() <= self.menu[-1] and self.cost(more) <= limit]:
            steps = min(affordable, key=lambda more: self.error(more).item())
        return tuple(int(count) for count in steps.tolist())
