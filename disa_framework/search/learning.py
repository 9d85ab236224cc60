"""A schedule learned by gradient: one number of steps a stage, whole numbers at the end.

The model is frozen, and is not even run: a profile knows how far each step count at each stage shifts each quantile of
what comes out. To first order the shifts of all stages add up, with their signs, where the knapsack adds up their
sizes: stages that err in the same way are dearer, and stages that make up for each other cheaper. The mean size of the
sum is what is learned to be small; a multiplier makes the cost meet the limit (dual ascent).

Letters: `K` stages, `M` entries of the menu of step counts, `R` whole numbers in its range, `F` quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from disa_framework.schedules import PerStage
from disa_framework.search.calibration import Profile, between

_BATCH, _EPOCHS, _LR, _DUAL_LR, _STIFFNESS = 512, 200, 0.05, 0.05, 10.0


class _Table:
    """Shifts and costs at any number of steps within a profile's menu.

    Args:
        profile: of shifts, which are straight lines in `1 / T` between the entries of the menu.
        costs: `[K][R]`, of all whole numbers of steps from the menu's first entry to its last; straight lines in
            `T` in between.
    """

    def __init__(self, profile: Profile, costs: Sequence[Sequence[float]]) -> None:
        self.menu, self.costs = profile.menu, torch.tensor(costs, dtype=torch.float64)

    def shift(self, steps: Tensor, shifts: Tensor) -> Tensor:
        """`[K, F]` at `steps [K]`, from `shifts [K, M, F]` of the menu."""
        left, share = between(self.menu, steps)
        stages = torch.arange(len(shifts))
        return torch.lerp(shifts[stages, left], shifts[stages, left + 1], share[:, None])

    def cost(self, steps: Tensor) -> Tensor:
        """Of all stages, a scalar."""
        place = steps.double() - self.menu[0]
        left = place.detach().long().clamp(max=self.costs.shape[1] - 2)
        below, above = (self.costs.gather(1, at[:, None]).squeeze(1) for at in (left, left + 1))
        return torch.lerp(below, above, place - left).sum()


class _Learner(LightningModule):
    """An epoch sees all quantiles, in batches `[b, K, M]`."""

    def __init__(self, table: _Table, scale: float, limit: float, start: Tensor) -> None:
        super().__init__()
        self.table, self.scale, self.limit = table, scale, limit
        self.log_steps = nn.Parameter(start.log())
        self.multiplier = 0.0

    @property
    def steps(self) -> Tensor:
        return self.log_steps.exp().clamp(self.table.menu[0], self.table.menu[-1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        error = self.table.shift(self.steps, batch[0].permute(1, 2, 0)).sum(dim=0).abs().mean()
        excess = self.table.cost(self.steps) / self.limit - 1
        self.excess = excess.detach()
        return error / self.scale + self.multiplier * excess + _STIFFNESS / 2 * excess.clamp(min=0).square()

    def on_train_batch_end(self, *_: object) -> None:
        self.multiplier = max(0.0, self.multiplier + _DUAL_LR * float(self.excess))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=_LR)


def learn(
    profile: Profile,
    limit: float,
    costs: Sequence[Sequence[float]] | None = None,
    *,
    seed: int = 0,
    progress_bar: bool = False,
) -> PerStage:
    """The schedule whose stages' shifts add up to the least, within a limit.

    Args:
        profile: of the model, as `measure_profile` gives it.
        limit: in the unit of the costs; in steps of the whole run if there are none.
        costs: `[K][R]` of all whole numbers of steps from the menu's first to its last, see `CostModel.stage_costs`.
        seed: of the order of batches.
        progress_bar: whether Lightning shows one.

    Raises:
        ValueError: if no budget is within the limit, or the menu has fewer than two entries.
    """
    if len(profile.menu) < 2:
        raise ValueError(f"learning needs a menu of at least 2 step counts, got {list(profile.menu)}")
    every = range(profile.menu[0], profile.menu[-1] + 1)
    table = _Table(profile, costs or [every] * len(profile.shifts))
    start = _affordable(table, limit)
    scale = table.shift(start, profile.shifts).sum(dim=0).abs().mean().item()
    learner = _Learner(table, max(scale, 1e-12), limit, start)
    quantiles = TensorDataset(profile.shifts.permute(2, 0, 1).contiguous())
    order = RandomSampler(quantiles, generator=torch.Generator().manual_seed(seed))
    # A batch is one look-up: putting it together of single quantiles takes longer than learning from it.
    data = DataLoader(quantiles, batch_size=None, sampler=BatchSampler(order, _BATCH, drop_last=False))
    with torch.inference_mode(False), torch.enable_grad():
        Trainer(
            accelerator="cpu", devices=1, max_epochs=_EPOCHS, logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=progress_bar,
        ).fit(learner, data)  # fmt: skip
    return PerStage(_whole(table, profile.shifts, learner.steps.detach(), limit))


def _affordable(table: _Table, limit: float) -> Tensor:
    """The same steps at every stage, as many as the limit allows, `[K]`."""
    K = len(table.costs)
    low, high = (math.log(table.menu[j]) for j in (0, -1))
    cheapest = table.cost(torch.full((K,), math.exp(low))).item()
    if cheapest > limit:
        raise ValueError(f"no budget costs at most {limit}: the cheapest feasible cost is {cheapest}")
    for _ in range(30):
        middle = (low + high) / 2
        fits = table.cost(torch.full((K,), math.exp(middle))).item() <= limit
        low, high = (middle, high) if fits else (low, middle)
    return torch.full((K,), math.exp(low))


def _whole(table: _Table, shifts: Tensor, steps: Tensor, limit: float) -> list[int]:
    """Whole steps within the limit: rounded down, then one by one where a step pays most, or costs least to lose."""
    steps = steps.floor().clamp(table.menu[0], table.menu[-1])
    while table.cost(steps) > limit:
        steps = min(_neighbors(table, steps, -1), key=lambda new: _loss_rate(table, shifts, steps, new))
    while affordable := [new for new in _neighbors(table, steps, 1) if table.cost(new) <= limit]:
        steps = min(affordable, key=lambda new: _error(table, shifts, new))
    return [int(count) for count in steps.tolist()]


def _neighbors(table: _Table, steps: Tensor, change: int) -> list[Tensor]:
    """All budgets with a step more or fewer at one stage."""
    moved = steps + change * torch.eye(len(steps))
    inside = (moved >= table.menu[0]) & (moved <= table.menu[-1])
    return [new for new, fits in zip(moved, inside.all(dim=1), strict=True) if fits]


def _error(table: _Table, shifts: Tensor, steps: Tensor) -> float:
    return table.shift(steps, shifts).sum(dim=0).abs().mean().item()


def _loss_rate(table: _Table, shifts: Tensor, steps: Tensor, fewer: Tensor) -> float:
    """What saving costs in error."""
    saved = (table.cost(steps) - table.cost(fewer)).item()
    return (_error(table, shifts, fewer) - _error(table, shifts, steps)) / max(saved, 1e-12)
