"""SequenceAR: sequences of tokens, as of speech, each token under a phone of its own, and of any length up to a limit.

Not a published system: the example of a model without pictures, explained in docs/adding-a-model.md. Its data are made
up: a phone is a place, and the tokens of a sequence wander around the places of its phones.

Letters: `B` sequences, `L` places, `l` places so far, `D` token channels, `w` width, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from disa_framework import NoiseSource, SamplingConfig, guided
from disa_framework.data.conditions import ConditionReader
from disa_framework.models import ARDiffusionModel, Proposal
from disa_framework.nn.time import TimestepEmbedding
from disa_framework.nn.transformer import Block
from disa_framework.sampling.condition import Condition, take
from disa_framework.solvers import Nodes, RectifiedFlow


@dataclass(frozen=True)
class SequenceState:
    """A run between two stages: phones `[G B, L]`, conditional rows first, how long each sequence is to be `[B]`, and
    the tokens so far, `[B, l, D]`."""

    phones: Tensor
    length: Tensor
    tokens: Tensor
    sampling: SamplingConfig


class VelocityHead(nn.Module):
    """`(x_t [..., D], y [..., w]) -> velocity [..., D]`, where `y` is the embedded time plus `z`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.time = TimestepEmbedding(width)
        self.token = nn.Linear(channels, width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.token(x) + y)


class SequenceAR(ARDiffusionModel[SequenceState]):
    """Draws sequences of `length` tokens at most. It is asked for them by a dictionary: `phones [B, length]`, numbers
    below `num_phones`, and `length [B]`, at least 1."""

    def __init__(
        self, length: int, channels: int, num_phones: int, width: int = 32, depth: int = 2, phone_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.process = RectifiedFlow()
        self.latent_shape = (length, channels)
        self.min_stages = self.max_stages = length  # a token a stage
        self.num_phones, self.phone_dropout = num_phones, phone_dropout
        self.phone = nn.Embedding(num_phones + 1, width)  # the last one is no phone
        self.token = nn.Linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads=2, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.velocity = VelocityHead(channels, width)

    @property
    def head(self) -> nn.Module:
        return self.velocity

    def check_condition(self, condition: Any) -> None:
        L = self.max_stages
        if not isinstance(condition, dict) or condition.keys() != {"phones", "length"}:
            raise ValueError(f"give a dictionary of phones [B, {L}] and length, got {type(condition).__name__}")
        for name, shape, low, high in (("phones", (L,), 0, self.num_phones - 1), ("length", (), 1, L)):
            part = condition[name]
            if part.shape[1:] != shape or part.min() < low or part.max() > high:
                raise ValueError(f"{name} must be {['B', *shape]}, {low} … {high}, got {part}")

    def backbone(self, phones: Tensor, tokens: Tensor) -> Tensor:
        """Conditioning `z [B, l, w]` of tokens whose phones are `[B, l]`, given those before them `[B, l - 1, D]`.

        It is computed anew at every stage; CausalAR shows how to keep keys and values.
        """
        before = F.pad(tokens, (0, 0, 1, 0))
        return self.norm(self.blocks(self.phone(phones) + self.token(before) + self.positions[: phones.shape[1]]))

    def begin(self, condition: Any, sampling: SamplingConfig, noise: NoiseSource) -> SequenceState:
        B, (L, D) = noise.batch_size, self.latent_shape
        null = torch.full((B, L), self.num_phones, device=self.device)
        asked = {"phones": null, "length": torch.full_like(null[:, 0], L)} if condition is None else condition
        phones = torch.cat((asked["phones"], null)) if sampling.branches_from(0) > 1 else asked["phones"]
        return SequenceState(phones, asked["length"], self.positions.new_zeros(B, 0, D), sampling)

    def propose(self, state: SequenceState, stage: int) -> Proposal:
        guidance = state.sampling.guidance_at(stage)
        tokens = state.tokens.repeat(guidance.branches, 1, 1)
        z = self.backbone(state.phones[: len(tokens), : stage + 1], tokens)[:, -1:]

        def embed(nodes: Nodes) -> Tensor:  # once a stage: what the head is told of each of its times
            return self.velocity.time(1000 * nodes.on(z.device))

        def head(x: Tensor, time: Tensor) -> Tensor:  # once a step: of both branches, or of the conditional one
            return self.velocity(x, time + z[: len(x)])

        denoise = guided(head, embed, self.process, guidance, guidance.at((stage + 1) / self.max_stages))
        return Proposal((1, self.latent_shape[1]), denoise, z=z)

    def accept(self, state: SequenceState, proposal: Proposal, tokens: Tensor) -> SequenceState:
        return replace(state, tokens=torch.cat((state.tokens, tokens), dim=1))

    def finished(self, state: SequenceState) -> Tensor:
        return state.length <= state.tokens.shape[1]

    def finish(self, state: SequenceState) -> Tensor:
        tokens = F.pad(state.tokens, (0, 0, 0, self.max_stages - state.tokens.shape[1]))
        return tokens * self.inside(state.length)[..., None]

    def inside(self, length: Tensor) -> Tensor:
        """Which places are within the sequences, bool `[B, L]`."""
        return torch.arange(self.max_stages, device=length.device) < length[:, None]

    def loss(self, latents: Tensor, condition: Any, generator: torch.Generator | None = None) -> Tensor:
        B, L, _ = latents.shape
        # Drawn on the CPU, so that a seed gives the same numbers on every device.
        dropped = torch.rand(B, 1, generator=generator) < (self.phone_dropout if self.training else 0.0)
        t = torch.rand(B, L, 1, generator=generator).to(latents)
        noise = torch.randn(latents.shape, generator=generator).to(latents)

        phones = torch.where(dropped.to(latents.device), self.num_phones, condition["phones"])
        time = self.velocity.time(1000 * t[..., 0])
        v = self.velocity(torch.lerp(latents, noise, t), time + self.backbone(phones, latents[:, :-1]))
        squared = (v - self.process.target(latents, noise)).square().mean(dim=-1)
        return squared[self.inside(condition["length"])].mean()


def asked(phones: list[list[int]], length: int) -> dict[str, Tensor]:
    """The condition that asks for these phones; what lies behind the end of a sequence is padded."""
    padded = torch.tensor([row + [0] * (length - len(row)) for row in phones])
    return {"phones": padded, "length": torch.tensor([len(row) for row in phones])}


@dataclass(frozen=True)
class PhoneFile(ConditionReader):
    """A line of JSON for each sequence: `[3, 1, 4]`, its phones.

    Args:
        path: of the file.
    """

    path: str

    def read(self, model: ARDiffusionModel) -> Condition:
        return asked([json.loads(line) for line in Path(self.path).read_text().splitlines()], model.max_stages)


class PhoneData(LightningDataModule):
    """Made-up sequences, with batches `(tokens [B, L, D], condition)`.

    Args:
        length, channels, num_phones: `L`, `D`, and how many phones there are.
        count: sequences; those of the first batch are held out.
        batch_size: `B`.
        seed: of all that is random.
    """

    def __init__(
        self, length: int = 8, channels: int = 2, num_phones: int = 5, count: int = 512, batch_size: int = 64,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.batch_size, generator = batch_size, torch.Generator().manual_seed(seed)
        places = torch.randn(num_phones, channels, generator=generator)
        phones = torch.randint(num_phones, (count, length), generator=generator)
        self.condition = {"phones": phones, "length": torch.randint(1, length + 1, (count,), generator=generator)}
        steps = 0.2 * torch.randn(count, length, channels, generator=generator)
        self.tokens = places[phones] + steps.cumsum(dim=1)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(range(self.batch_size, len(self.tokens)), train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(range(self.batch_size), train=False)

    def _loader(self, places: range, train: bool) -> DataLoader[Any]:
        items: Any = [(self.tokens[i], take(self.condition, [i])) for i in places]
        return DataLoader(items, self.batch_size, shuffle=train, drop_last=train, collate_fn=_collate)


def _collate(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    tokens, conditions = zip(*items, strict=True)
    return torch.stack(tokens), {name: torch.cat([c[name] for c in conditions]) for name in conditions[0]}
