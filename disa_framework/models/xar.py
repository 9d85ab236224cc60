"""xAR, next-cell prediction whose whole backbone is the denoiser (Ren et al., arXiv 2502.20388).

Letters: `B` batch, `C` latent channels, `N` tokens in the order of cells, `n` tokens of a cell, `K` cells and stages,
`w` width, `d` width of an attention head, `G` guidance branches (1 or 2), `T` steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal
from disa_framework.nn.adaln import AdaptiveBlock, RMSNorm, allocate_caches, block_causal_mask
from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.rotary import grid_positions, rotary
from disa_framework.nn.time import TimestepEmbedding, flow_times
from disa_framework.nn.tokens import patchify, unpatchify
from disa_framework.nn.transformer import start_linears
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.guidance import guided
from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers.process import Nodes, RectifiedFlow
from disa_framework.solvers.table import Denoiser
from disa_framework.values import check_numbers

Tables = tuple[Tensor, Tensor]
"""Rotary tables of some tokens, the encoder's and the decoder's."""


@dataclass(frozen=True)
class XARState:
    """A run between two stages.

    Attributes:
        class_embedding: `[G B, 1, w]`, conditional rows first.
        caches: keys and values of each block, encoder first.
        tables: of each stage.
        sampling: of the run.
        cells: the cells drawn so far, `[B, n, C]` each.
    """

    class_embedding: Tensor
    caches: list[KVCache]
    tables: list[Tables]
    sampling: SamplingConfig
    cells: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random in one evaluation of the training loss.

    Attributes:
        dropped: `[B]` bool, samples trained without their class.
        times: `[B, K]` in (0, 1).
        noise: `[B, N, C]`, in the order of cells.
    """

    dropped: Tensor
    times: Tensor
    noise: Tensor


class XAR(ARDiffusionModel[XARState]):
    """Class-conditional generator that draws an image cell after cell, in raster order.

    Args:
        latent_size: side of the square latents.
        latent_channels: `C`.
        num_classes: labels are 0 … num_classes - 1.
        cells_per_side: an image has the square of it.
        width: of the transformers.
        encoder_depth, encoder_heads, decoder_depth, decoder_heads: of the two halves of the backbone.
        mlp_ratio: of the MLPs, before gating.
        attn_dropout, proj_dropout: in training.
        label_dropout: share of training samples without a class, for guidance.
        position_std: standard deviation of the initial position tables.
    """

    mask: Tensor

    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 16,
        num_classes: int = 1000,
        cells_per_side: int = 2,
        width: int = 768,
        encoder_depth: int = 8,
        encoder_heads: int = 12,
        decoder_depth: int = 8,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        label_dropout: float = 0.1,
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_numbers(XAR.__init__, locals())
        if latent_size % cells_per_side:
            raise ValueError(f"latent_size {latent_size} is not divisible by cells_per_side {cells_per_side}")
        self.process = RectifiedFlow()
        self.latent_shape = (latent_channels, latent_size, latent_size)
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.cell_side = latent_size // cells_per_side
        self.cell_tokens = self.cell_side**2
        self.min_stages = self.max_stages = cells_per_side**2
        where = self.to_cells(grid_positions(latent_size).T.unflatten(1, (latent_size, latent_size))[None])[0]

        def positions() -> nn.Parameter:
            return nn.Parameter(torch.randn(1, latent_size**2, width) * position_std)

        def blocks(depth: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                AdaptiveBlock(width, heads, mlp_ratio, attn_dropout, proj_dropout, where) for _ in range(depth)
            )

        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.time_embed = TimestepEmbedding(width)
        self.z_proj = nn.Linear(latent_channels, width)
        self.z_proj_ln = RMSNorm(width)
        self.encoder_pos_embed_learned = positions()
        self.encoder_blocks = blocks(encoder_depth, encoder_heads)
        self.encoder_norm = RMSNorm(width)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = positions()
        self.decoder_blocks = blocks(decoder_depth, decoder_heads)
        self.decoder_norm = RMSNorm(width)
        self.pred = nn.Linear(width, latent_channels)
        self.register_buffer("mask", block_causal_mask([self.cell_tokens] * self.max_stages))
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears and normal embeddings; modulations and output start at zero (DiT)."""
        start_linears(self, lambda name: "ada_lin" in name or name == "pred")
        nn.init.normal_(self.class_emb.weight, std=0.02)
        self.time_embed.initialize()

    def to_cells(self, latents: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, N, C]`, cells in raster order, and tokens in raster order within a cell."""
        cells = patchify(latents, self.cell_side)
        return cells.unflatten(2, (latents.shape[1], -1)).transpose(2, 3).flatten(1, 2)

    def from_cells(self, tokens: Tensor) -> Tensor:
        """The inverse of `to_cells`."""
        cells = tokens.unflatten(1, (-1, self.cell_tokens)).transpose(2, 3).flatten(2)
        return unpatchify(cells, self.cell_side, *self.latent_shape[1:])

    def cell(self, stage: int) -> slice:
        """Where the tokens of a stage lie in the order of cells."""
        return slice(stage * self.cell_tokens, (stage + 1) * self.cell_tokens)

    # --- backbone ---------------------------------------------------------------------------------------

    def velocity(
        self,
        x: Tensor,
        condition: Tensor,
        tables: Tables,
        place: slice,
        caches: list[KVCache] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Velocity `[B, n, C]` of the tokens `x [B, n, C]` at `place`.

        Args:
            condition: class plus time, `[B, 1, w]`, or one for each cell of several.
            tables: of these tokens.
            caches: keys and values of what comes before `place`, which those of `x` are written behind; `None` if
                nothing does.
            mask: added to the scores of the attention.
        """
        depth = len(self.encoder_blocks) + len(self.decoder_blocks)
        past = iter([Past(cache, place.start) for cache in caches] if caches else [None] * depth)
        x = self.z_proj_ln(self.z_proj(x) + self.encoder_pos_embed_learned[:, place])
        for block in self.encoder_blocks:
            x = block(x, condition, tables[0], next(past), mask)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, place]
        for block in self.decoder_blocks:
            x = block(x, condition, tables[1], next(past), mask)
        return self.pred(self.decoder_norm(x))

    def tables(self, place: slice) -> Tables:
        """Rotary tables of the tokens at `place`."""
        return rotary(self.encoder_blocks).own_table(place), rotary(self.decoder_blocks).own_table(place)

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> XARState:
        null = self.class_emb.weight[-1].expand(noise.batch_size, -1)
        embedding = null if condition is None else self.class_emb(condition)
        if sampling.branches_from(0) > 1:
            embedding = torch.cat((embedding, null))
        blocks = (*self.encoder_blocks, *self.decoder_blocks)
        caches = allocate_caches(blocks, len(embedding), sampling.stages * self.cell_tokens, embedding)
        tables = [self.tables(self.cell(stage)) for stage in range(sampling.stages)]
        return XARState(embedding[:, None], caches, tables, sampling)

    def propose(self, state: XARState, stage: int) -> Proposal:
        if stage:
            self._remember(state, stage - 1)
        return Proposal((self.cell_tokens, self.latent_shape[0]), self._denoiser(state, stage))

    def accept(self, state: XARState, proposal: Proposal, tokens: Tensor) -> XARState:
        return replace(state, cells=(*state.cells, tokens))

    def finish(self, state: XARState) -> Tensor:
        tokens = torch.cat(state.cells, dim=1)
        return self.from_cells(F.pad(tokens, (0, 0, 0, (self.max_stages - len(state.cells)) * self.cell_tokens)))

    def _remember(self, state: XARState, stage: int) -> None:
        """Puts the keys and values of a finished cell, seen at t = 0, into the caches of the branches to come."""
        clean = state.cells[stage].repeat(state.sampling.branches_from(stage + 1), 1, 1)
        condition = state.class_embedding[: len(clean)] + self.time_embed(clean.new_zeros(()))
        self.velocity(clean, condition, state.tables[stage], self.cell(stage), state.caches)

    def _denoiser(self, state: XARState, stage: int) -> Denoiser:
        """The backbone on the noisy cell, guided within the interval."""
        place, tables, guidance = self.cell(stage), state.tables[stage], state.sampling.guidance_at(stage)

        def embed(nodes: Nodes) -> Tensor:
            device = state.class_embedding.device
            return self.time_embed(flow_times(nodes.on(device), device))

        def head(x: Tensor, time: Tensor) -> Tensor:
            return self.velocity(x, state.class_embedding[: len(x)] + time, tables, place, state.caches)

        return guided(head, embed, self.process, guidance, guidance.rising(stage, self.max_stages))

    # --- training ---------------------------------------------------------------------------------------

    def losses(
        self,
        latents: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
    ) -> Losses:
        """As the contract says; `draws` replaces the generator."""
        draws = draws or self.training_draws(len(latents), latents.device, generator)
        clean = self.to_cells(latents)
        v = self.velocity_of_all(clean, condition, draws)
        squared = (v - self.process.target(clean, draws.noise)).square()
        cells = squared.detach().unflatten(1, (self.max_stages, -1))
        return Losses.of_stages(squared.mean(), cells.mean(dim=(0, 2, 3)))

    def velocity_of_all(self, clean: Tensor, condition: Tensor | None, draws: TrainingDraws) -> Tensor:
        """Velocity `[B, N, C]` of all cells, each at its own time, given noisy earlier ones."""
        null = torch.full_like(draws.dropped, self.num_classes, dtype=torch.int64)
        labels = null if condition is None else torch.where(draws.dropped, null, condition)
        cells = self.class_emb(labels)[:, None] + self.time_embed(flow_times(draws.times, clean.device))
        noisy = torch.lerp(clean, draws.noise, draws.times.repeat_interleave(self.cell_tokens, dim=1)[..., None])
        place = slice(0, clean.shape[1])
        return self.velocity(noisy, cells, self.tables(place), place, mask=self.mask)

    def training_draws(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> TrainingDraws:
        """Draws on the CPU, then moves to `device`. Times are logit-normal (0, 1)."""
        dropped = torch.rand(batch_size, generator=generator) < (self.label_dropout if self.training else 0.0)
        times = torch.randn(batch_size, self.max_stages, generator=generator).sigmoid()
        shape = (batch_size, self.max_stages * self.cell_tokens, self.latent_shape[0])
        noise = torch.randn(shape, generator=generator)
        return TrainingDraws(dropped.to(device), times.to(device), noise.to(device))


def xar_base() -> XAR:
    """xAR-B: 173 million parameters, 256x256 ImageNet."""
    return XAR()


def xar_large() -> XAR:
    """xAR-L: 608 million parameters."""
    return XAR(width=1024, encoder_depth=16, encoder_heads=16, decoder_depth=16, decoder_heads=16)


def xar_huge() -> XAR:
    """xAR-H: 1,186 million parameters."""
    return XAR(width=1280, encoder_depth=20, encoder_heads=16, decoder_depth=20, decoder_heads=16)
