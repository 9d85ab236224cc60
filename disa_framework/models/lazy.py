"""Feature caching for masked models, after LazyMAR (Yan et al., arXiv 2503.12450).

From one stage to the next most tokens mean much the same to a backbone that sees the whole image, and so does the
difference between an image of a class and any image. So everything is computed at every few stages, and in between
only, for the conditional branch alone, the tokens that are drawn, those that have just been, and those that moved most;
keys and values of all others are those of the last time. What moved shows behind the first block, which is cheap
enough to be computed for all. Shapes depend on the stage alone, and a state is never written into, so that a stage may
be proposed twice.

Letters: `B` batch, `G` guidance branches, `L` tokens of a stack of blocks, `l` those it computes anew, `w` width,
`h` heads, `d = w / h`, `N` tokens of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.layers import Block, gather_tokens

if TYPE_CHECKING:
    from disa_framework.models.mar import MAR, MARState


REFRESHES = (2, 4, 8)
"""Periods that are worth a look."""


@dataclass(frozen=True)
class Lazy:
    """How much of a masked backbone is computed at each stage.

    Args:
        refresh: everything is at every so many stages, from the first on; 1 computes everything always.
        share: of the tokens that need not be, those that moved most, at the stages between.
    """

    refresh: int = 4
    share: float = 0.1

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1 stage, got {self.refresh}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share of the tokens must lie in [0, 1], got {self.share}")

    def refreshes(self, stage: int) -> bool:
        """Whether everything is computed at a stage."""
        return stage % self.refresh == 0


def check_cache(model: nn.Module, cache: Lazy | None) -> None:
    """Raises a ValueError if a model is to cache features that it has not."""
    if cache and not hasattr(model, "cache"):
        raise ValueError(f"feature caching is for masked models such as MAR, {type(model).__name__} is none")


@contextmanager
def caching(model: nn.Module, cache: Lazy | None) -> Iterator[None]:
    """The model with this cache, for a while."""
    check_cache(model, cache)
    if not hasattr(model, "cache"):
        yield
        return
    masked: Any = model
    before, masked.cache = masked.cache, cache
    try:
        yield
    finally:
        masked.cache = before


@dataclass(frozen=True)
class Features:
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
    def compute(cls, blocks: Sequence[Block], x: Tensor, kept: int) -> tuple[Tensor, Features]:
        """What the blocks make of `x [G B, L, w]`, and the features of its first `kept` rows."""
        keys, values = [], []
        early = x = blocks[0](x)
        for block in blocks[1:]:
            q, k, v = block.project(x)
            keys.append(k[:kept])
            values.append(v[:kept])
            x = block.update(x, q, k, v)
        return x, cls(keys, values, early[:kept], x[:kept])

    def renew(self, blocks: Sequence[Block], x: Tensor, due: Tensor, share: float) -> Features:
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
        return Features(keys, values, known, _put(self.late, places, x, L))

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
        difference: `[B, N, w]`, what the unconditional branch's conditioning has more; `None` without guidance.
    """

    encoder: Features
    decoder: Features
    difference: Tensor | None


def lazy_backbone(
    model: MAR, lazy: Lazy, state: MARState, stage: int, visible: Tensor, drawn: Tensor
) -> tuple[Tensor, Memory]:
    """Conditioning `z [G B, n, w]` of the tokens that a stage draws, and what the next stages need of it.

    Args:
        visible, drawn: `[B, m]` and `[B, n]`, the stage's places.
    """
    if state.memory is None or lazy.refreshes(stage):
        return _compute(model, state, visible, drawn)
    return _renew(model, lazy, state, state.memory, visible, drawn)


def _compute(model: MAR, state: MARState, visible: Tensor, drawn: Tensor) -> tuple[Tensor, Memory]:
    B = len(state.tokens)
    G = len(state.context) // B
    visible, drawn = visible.repeat(G, 1), drawn.repeat(G, 1)
    seen, S = gather_tokens(state.tokens.repeat(G, 1, 1), visible), model.buffer_size
    x = model.embed(seen, state.context, visible, model.positions)
    x, encoder = Features.compute(model.encoder, x, B)
    x, decoder = Features.compute(model.decoder, model.fill(model.encoder_norm(x), visible, model.positions), B)
    cond, *null = model.decoder_norm(x[:, S:]).chunk(G)
    difference = null[0] - cond if null else None
    return model.read(gather_tokens(x, drawn + S), drawn, model.positions), Memory(encoder, decoder, difference)


def _renew(
    model: MAR, lazy: Lazy, state: MARState, memory: Memory, visible: Tensor, drawn: Tensor
) -> tuple[Tensor, Memory]:
    B, S = len(state.tokens), model.buffer_size
    known = memory.encoder.late.shape[1]
    x = model.embed(gather_tokens(state.tokens, visible), state.context[:B], visible, model.positions)
    new = torch.arange(known, x.shape[1], device=x.device).expand(B, -1)
    encoder = memory.encoder.renew(model.encoder, x, new, lazy.share)
    x = model.fill(model.encoder_norm(encoder.late), visible, model.positions)
    due = torch.cat((drawn, visible[:, known - S :]), dim=1) + S
    decoder = memory.decoder.renew(model.decoder, x, due, lazy.share)
    z = model.read(gather_tokens(decoder.late, drawn + S), drawn, model.positions)
    if memory.difference is not None:
        z = torch.cat((z, z + gather_tokens(memory.difference, drawn)))
    return z, Memory(encoder, decoder, memory.difference)


def _put(old: Tensor, places: Tensor, new: Tensor, length: int) -> Tensor:
    """`old [B, ..., L, c]`, made longer, with `new [B, ..., l, c]` at `places [B, l]`."""
    index = places.view(len(places), *(1,) * (old.ndim - 3), -1, 1).expand_as(new)
    copy = F.pad(old, (0, 0, 0, length - old.shape[-2])) if length > old.shape[-2] else old.clone()
    return copy.scatter_(-2, index, new)
