"""How well a small network predicts a clean token from what the head is told of it, the paper's first evidence.

Letters: `K` stages, `S` samples, `n` tokens of a stage, `D` token channels, `Z` width of the conditioning, `w` width of
the network, `F` rows: tokens of all stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

_HELD_OUT = 5  # one of so many samples
_LEAST = 20  # samples
_WIDTH, _ROWS, _RATE, _DECAY = 128, 512, 2e-3, 0.1


class Predictor(nn.Module):
    """`(z [F, Z], stage [F]) -> [F, D]`, an MLP that all stages share, as they share the head. It knows the stage."""

    def __init__(self, channels: int, cond_width: int, num_stages: int, width: int = _WIDTH) -> None:
        super().__init__()
        self.stages = nn.Embedding(num_stages, width)
        self.first = nn.Linear(cond_width, width)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels))

    def forward(self, z: Tensor, stage: Tensor) -> Tensor:
        return self.rest(self.first(z) + self.stages(stage))


def predictability(z: Sequence[Tensor], tokens: Sequence[Tensor], seed: int = 0, steps: int = 1000) -> list[float]:
    """R² of each stage, the share of the variance that is explained: 1 is a certain token, 0 no better than the mean.

    A predictor is trained on four fifths of the samples, and looks at the others.

    Args:
        z: `[S, n, Z]` of each stage.
        tokens: `[S, n, D]` of each stage.
        seed: of who is held out, the initial weights and the batches.
        steps: of the optimizer.

    Raises:
        ValueError: if there are too few samples to learn from.
    """
    if len(tokens[0]) < _LEAST:
        raise ValueError(f"predictability needs at least {_LEAST} samples, got {len(tokens[0])}")
    # At random: classes come in turn, and so would be on one side each.
    order = torch.randperm(len(tokens[0]), generator=torch.Generator().manual_seed(seed))
    kept = order >= len(order) // _HELD_OUT
    x, y, stage = _rows(z, tokens, kept)
    x_mean, x_std, y_mean, y_std = x.mean(dim=0), x.std(dim=0) + 1e-6, y.mean(dim=0), y.std() + 1e-6
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        net = _trained(((x - x_mean) / x_std), (y - y_mean) / y_std, stage, len(z), steps)
    found = []
    for k in range(len(z)):
        x, y, stage = _rows(z[k : k + 1], tokens[k : k + 1], ~kept)
        with torch.no_grad():
            predicted = net((x - x_mean) / x_std, stage + k) * y_std + y_mean
        mse = (y - predicted).square().mean()
        spread = (y - y.mean(dim=0)).square().mean()
        found.append(1 - (mse / spread.clamp(min=1e-12)).item())
    return found


def _rows(z: Sequence[Tensor], tokens: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`z [F, Z]`, tokens `[F, D]` and stages `[F]` of the chosen samples."""
    inputs, targets = ([part[chosen].flatten(0, 1) for part in parts] for parts in (z, tokens))
    stage = [torch.full((len(rows),), k) for k, rows in enumerate(inputs)]
    return torch.cat(inputs), torch.cat(targets), torch.cat(stage)


def _trained(x: Tensor, y: Tensor, stage: Tensor, num_stages: int, steps: int) -> Predictor:
    net = Predictor(y.shape[1], x.shape[1], num_stages)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (_ROWS,))
        loss = (net(x[rows], stage[rows]) - y[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net
