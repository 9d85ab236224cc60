"""Feature caching for masked models, after LazyMAR (Yan et al., arXiv 2503.12450).

From one stage to the next most tokens mean much the same to a backbone that sees the whole image, and so does the
difference between an image of what is asked for and any image. So everything is computed at every few stages, and in
between only, for the conditional branch alone, the tokens that are drawn, those that have just been, and those that
moved most; keys and values of all others are those of the last time. What moved shows behind the first block, which is
cheap enough to be computed for all. What lies between encoder and decoder, Harmon's language model, keeps nothing: new
tokens come in between the others that it reads, and shift them. Shapes depend on the stage alone, and a state is never
written into, so that a stage may be proposed twice.

Letters: `B` batch, `G` guidance branches (1 or 2), `g` those at hand, `N` tokens of an image, `S` buffer slots,
`m` visible tokens, `n` tokens of a stage, `w` width, `h` heads, `d = w / h`; `L` tokens of a stack of blocks, `l` those
it computes anew.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.nn.tokens import gather_tokens
from disa_framework.nn.transformer import Block


class FeatureCache(ABC):
    """How much of a masked backbone is computed at each stage; the rest is as it was at an earlier one.

    Attributes:
        share: of the tokens that need not be computed, those that moved most, which are all the same.
    """

    share: float

    @abstractmethod
    def refreshes(self, stage: int) -> bool:
        """Whether everything is computed at a stage."""


@dataclass(frozen=True)
class Lazy(FeatureCache):
    """Everything at every few stages, and in between what has changed most.

    Args:
        refresh: everything is at every so many stages, from the first on; 1 computes everything always.
        share: of the tokens that need not be, those that moved most, at the stages between.
        start: stages at the beginning, at which everything is computed, too: images change most there, and nearly all
            of the error was made there (docs/performance.md).
    """

    refresh: int = 4
    share: float = 0.1
    start: int = 4

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1 stage, got {self.refresh}")
        if self.start < 1:
            raise ValueError(f"start must be at least 1 stage, got {self.start}: there is nothing to keep before")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of the tokens must lie in [0, 1], got {self.share}")

    def refreshes(self, stage: int) -> bool:
        return stage < self.start or stage % self.refresh == 0


@dataclass(frozen=True)
class BlockFeatures:
    """What a stack of blocks made of each token when it was last computed.

    Attributes:
        keys, values: of every block but the first, `[B, h, L, d]`.
        early: `[B, L, w]`, behind the first block.
        late: `[B, L, w]`, behind the last one.
    """

    keys: list[Tensor]
    values: list[Tensor]
    early: Tensor
    late: Tensor

    @classmethod
    def compute(cls, blocks: Sequence[Block], x: Tensor, kept: int) -> tuple[Tensor, BlockFeatures]:
        """What the blocks make of `x [G B, L, w]`, and the features of its first `kept` rows."""
        keys, values = [], []
        early = x = blocks[0](x)
        for block in blocks[1:]:
            q, k, v = block.project(x)
            keys.append(k[:kept])
            values.append(v[:kept])
            x = block.update(x, q, k, v)
        return x, cls(keys, values, early[:kept], x[:kept])

    def renew(self, blocks: Sequence[Block], x: Tensor, due: Tensor, share: float) -> BlockFeatures:
        """The features once `x [B, L, w]` has come, whose tokens beyond those known are among the ones due.

        Args:
            due: `[B, n]`, which tokens have to be computed.
            share: of the others, those that moved most are, too.
        """
        early = blocks[0](x)
        places = torch.cat((due, self._moved(early, due, share)), dim=1)
        L, x = early.shape[1], gather_tokens(early, places)
        keys, values, known = [], [], _put(self.early, places, x, L)
        for block, old_keys, old_values in zip(blocks[1:], self.keys, self.values, strict=True):
            q, k, v = block.project(x)
            keys.append(_put(old_keys, places, k, L))
            values.append(_put(old_values, places, v, L))
            x = block.update(x, q, keys[-1], values[-1])
        return BlockFeatures(keys, values, known, _put(self.late, places, x, L))

    def _moved(self, early: Tensor, due: Tensor, share: float) -> Tensor:
        """Of the tokens that are not due, those that are farthest from what they were `[B, l - n]`."""
        known = self.early.shape[1]
        change = (early[:, :known] - self.early).square().sum(dim=-1)
        change = F.pad(change, (0, early.shape[1] - known)).scatter(1, due, -1.0)
        return change.topk(math.floor(share * (early.shape[1] - due.shape[1])), dim=1).indices


@dataclass(frozen=True)
class Memory:
    """What a run remembers between stages.

    Attributes:
        encoder, decoder: features of the conditional branch.
        difference: `[B, N, w]`, what the unconditional branch's conditioning has more; `None` if there was none when
            everything was computed.
    """

    encoder: BlockFeatures
    decoder: BlockFeatures
    difference: Tensor | None


class Masked(Protocol):
    """What is asked of a MAR, whose parts these are."""

    buffer_size: int
    encoder_norm: nn.LayerNorm
    decoder_norm: nn.LayerNorm

    @property
    def encoder(self) -> list[Block]: ...
    @property
    def decoder(self) -> list[Block]: ...
    def embed(self, seen: Tensor, label_embedding: Tensor, visible: Tensor, positions: Any) -> Tensor: ...
    def fill(self, encoded: Tensor, visible: Tensor, positions: Any) -> Tensor: ...
    def read(self, x: Tensor, drawn: Tensor, positions: Any) -> Tensor: ...


@dataclass(frozen=True)
class Backbone:
    """The backbone of a MAR, or of a model around one, at one stage.

    Attributes:
        mar: its encoder and decoder.
        positions: for the size of the images.
        tokens: `[B, N, D]`, before the stage.
        visible, drawn: `[B, m]`, the first drawn in front, and `[B, n]`, the stage's places.
        branches: `G`.
        buffer: `[G B, w]`, what the encoder's slots carry; `[B, w]` where that is the same in all branches.
        between: makes of what the encoder made, `[G B, S + m, w]` or `[B, S + m, w]`, what the decoder is given for `g`
            branches, `[g B, S + m, w]`.
    """

    mar: Masked
    positions: Any
    tokens: Tensor
    visible: Tensor
    drawn: Tensor
    branches: int
    buffer: Tensor
    between: Callable[[Tensor, int], Tensor] = lambda encoded, g: encoded

    def conditioning(self, cache: FeatureCache, stage: int, memory: Memory | None) -> tuple[Tensor, Memory]:
        """`z [G B, n, w]` of the tokens that a stage draws, and what the next stages need of it."""
        if memory is None or cache.refreshes(stage) or (self.branches > 1 and memory.difference is None):
            return self._compute()
        return self._renew(memory, cache.share)

    def _compute(self) -> tuple[Tensor, Memory]:
        mar, B, G = self.mar, len(self.drawn), self.branches
        x, encoder = BlockFeatures.compute(mar.encoder, self._embed(self.buffer), B)
        x, decoder = BlockFeatures.compute(mar.decoder, self._fill(self.between(mar.encoder_norm(x), G)), B)
        cond, *null = mar.decoder_norm(x[:, mar.buffer_size :]).chunk(G)
        return self._read(x), Memory(encoder, decoder, null[0] - cond if null else None)

    def _renew(self, memory: Memory, share: float) -> tuple[Tensor, Memory]:
        mar, B, S = self.mar, len(self.drawn), self.mar.buffer_size
        known, x = memory.encoder.late.shape[1], self._embed(self.buffer[:B])
        new = torch.arange(known, x.shape[1], device=x.device).expand(B, -1)
        encoder = memory.encoder.renew(mar.encoder, x, new, share)
        x = self._fill(self.between(mar.encoder_norm(encoder.late), 1))
        due = torch.cat((self.drawn, self.visible[:, known - S :]), dim=1) + S
        decoder = memory.decoder.renew(mar.decoder, x, due, share)
        z = self._read(decoder.late)
        if self.branches > 1 and memory.difference is not None:
            z = torch.cat((z, z + gather_tokens(memory.difference, self.drawn)))
        return z, Memory(encoder, decoder, memory.difference)

    def _embed(self, buffer: Tensor) -> Tensor:
        g = len(buffer) // len(self.visible)
        seen = gather_tokens(self.tokens, self.visible).repeat(g, 1, 1)
        return self.mar.embed(seen, buffer, self.visible.repeat(g, 1), self.positions)

    def _fill(self, encoded: Tensor) -> Tensor:
        g = len(encoded) // len(self.visible)
        return self.mar.fill(encoded, self.visible.repeat(g, 1), self.positions)

    def _read(self, x: Tensor) -> Tensor:
        drawn = self.drawn.repeat(len(x) // len(self.drawn), 1)
        return self.mar.read(gather_tokens(x, drawn + self.mar.buffer_size), drawn, self.positions)


def _put(old: Tensor, places: Tensor, new: Tensor, length: int) -> Tensor:
    """`old [B, ..., L, c]`, made longer, with `new [B, ..., l, c]` at `places [B, l]`."""
    index = places.view(len(places), *(1,) * (old.ndim - 3), -1, 1).expand_as(new)
    copy = F.pad(old, (0, 0, 0, length - old.shape[-2])) if length > old.shape[-2] else old.clone()
    return copy.scatter_(-2, index, new)
