"""Tokens in raster order, one a stage, from a causal transformer: what such models share, and CausalAR.

CausalAR has MAR's diffusion head, or a mixture of Gaussians in its place. It is not a published system but the example
of a model of one's own, explained in docs/adding-a-model.md.

Letters: `B` batch, `N` tokens and stages, `D` token channels, `L` tokens at hand, `w` width, `R` repeats of the
diffusion loss, `m` tokens of the class, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal
from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.diffusion_head import TokenHead
from disa_framework.nn.mixture_head import PUBLISHED_SCALE
from disa_framework.nn.token_head import token_head
from disa_framework.nn.tokens import patchify, unpatchify
from disa_framework.nn.transformer import Block, start_linears
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.guidance import Guidance
from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers.process import VPCosine
from disa_framework.values import check_numbers


@dataclass(frozen=True)
class RasterState:
    """A run between two stages.

    Attributes:
        labels: `[G B]`, conditional rows first.
        caches: keys and values of each block. A stage writes the place of what it is told, and reads those before it.
        sampling: of the run.
        drawn: `[B, 1, D]` of each stage so far; `[B, 2, D]` where each branch goes on with a token of its own.
    """

    labels: Tensor
    caches: list[KVCache]
    sampling: SamplingConfig
    drawn: tuple[Tensor, ...] = ()


class RasterAR(ARDiffusionModel[RasterState]):
    """Class-conditional generator that draws an image token by token, row after row; subclass it as `CausalAR` does.

    Args:
        latent_shape: of a sample, `(C, H, W)`.
        patch_size: side of a token, in latent pixels.
        num_classes: labels are 0 … num_classes - 1, and num_classes is no class.
        width, depth, heads: of the causal transformer.
        class_tokens: `m`, how many stand before the image.

    Raises:
        ValueError: tokens that do not fit the latents.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        patch_size: int,
        num_classes: int,
        width: int,
        depth: int,
        heads: int,
        class_tokens: int = 1,
    ) -> None:
        super().__init__()
        C, H, W = self.latent_shape = latent_shape
        if H % patch_size or W % patch_size:
            raise ValueError(f"latent_size {H} is not divisible by patch_size {patch_size}")
        self.patch_size, self.num_classes, self.class_tokens = patch_size, num_classes, class_tokens
        self.width, self.depth, self.heads = width, depth, heads
        self.token_channels = C * patch_size**2
        self.min_stages = self.max_stages = (H // patch_size) * (W // patch_size)

    @property
    @abstractmethod
    def head(self) -> TokenHead:
        """What draws a token, given `z`."""

    @abstractmethod
    def embed_classes(self, labels: Tensor) -> Tensor:
        """What stands before the image, `[B, m, w]`, of labels `[B]`."""

    @abstractmethod
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, L, D]` as the transformer is told of them, `[B, L, w]`."""

    @abstractmethod
    def backbone(self, x: Tensor, start: int = 0, caches: Sequence[KVCache] = ()) -> Tensor:
        """Conditioning `z` of the image's tokens that follow one of `x`, `[B, 1 … L, w]`.

        Args:
            x: `[B, L, w]`, some of the class, then tokens.
            start: place of the first of them.
            caches: of each block, which hold what is before `start`; none are needed for whole sequences.
        """

    def scale(self, guidance: Guidance, stage: int) -> float:
        """Of guidance at a stage."""
        return guidance.at((stage + 1) / self.max_stages)

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> RasterState:
        null = torch.full((noise.batch_size,), self.num_classes, device=self.device)
        labels = null if condition is None else condition
        if sampling.branches_from(0) > 1:
            labels = torch.cat((labels, null))
        size = len(labels), self.heads, self.class_tokens + self.max_stages - 1, self.width // self.heads
        like = next(self.parameters())
        return RasterState(labels, [KVCache.empty(*size, like) for _ in range(self.depth)], sampling)

    def propose(self, state: RasterState, stage: int) -> Proposal:
        # Where guidance does not act, the unconditional branch is computed for the keys that later stages need.
        guidance, G = state.sampling.guidance_at(stage), state.sampling.branches_from(stage)
        z = self.condition_next(state, stage)
        z = z[: len(z) // G * guidance.branches]
        denoise = self.head.denoiser(z, self.scale(guidance, stage), guidance)
        return Proposal((1, self.token_channels), denoise, z=z)

    def condition_next(self, state: RasterState, stage: int) -> Tensor:
        """`z [G B, 1, w]` of a stage's token, of all branches that it or a later one needs."""
        if stage == 0:
            return self.backbone(self.embed_classes(state.labels), 0, state.caches)
        rows = state.drawn[stage - 1].transpose(0, 1)  # [1 or G, B, D]
        rows = rows.repeat(state.sampling.branches_from(stage) // len(rows), 1, 1).flatten(0, 1)
        return self.backbone(self.embed_tokens(rows[:, None]), self.class_tokens + stage - 1, state.caches)

    def accept(self, state: RasterState, proposal: Proposal, tokens: Tensor) -> RasterState:
        return replace(state, drawn=(*state.drawn, tokens))

    def finish(self, state: RasterState) -> Tensor:
        tokens = torch.cat([drawn[:, :1] for drawn in state.drawn], dim=1)
        tokens = F.pad(tokens, (0, 0, 0, self.max_stages - len(state.drawn)))
        return unpatchify(tokens, self.patch_size, *self.latent_shape[1:])

    # --- training ---------------------------------------------------------------------------------------

    def condition_all(self, tokens: Tensor, condition: Tensor | None, dropped: Tensor) -> Tensor:
        """`z [B, N, w]` of all tokens `[B, N, D]`, each given the true earlier ones.

        Args:
            condition: class labels `[B]`; `None` for no class.
            dropped: `[B]` bool, samples that lose theirs.
        """
        null = torch.full_like(dropped, self.num_classes, dtype=torch.int64)
        labels = null if condition is None else torch.where(dropped, null, condition)
        return self.backbone(torch.cat((self.embed_classes(labels), self.embed_tokens(tokens[:, :-1])), dim=1))

    def losses_of(self, tokens: Tensor) -> Losses:
        """Of the losses of tokens `[..., N]`."""
        return Losses.of_stages(tokens.mean(), tokens.detach().flatten(0, -2).mean(dim=0))


class CausalAR(RasterAR):
    """Class-conditional generator that draws an image token by token, row after row.

    Args:
        latent_size: side of the square latents, in latent pixels.
        latent_channels: `C`.
        patch_size: side of a token, in latent pixels.
        num_classes: labels are 0 … num_classes - 1.
        width, depth, heads: the transformer.
        head_depth, head_width: the diffusion head; hidden layers of a mixture head.
        dropout: of attention and MLPs, in training.
        label_dropout: share of training samples without a class, for guidance.
        diffusion_batch_mul: `R`, how many times and noises a token is trained at; a mixture head has neither.
        position_std: standard deviation of the initial position table.
        components: Gaussians of a mixture head, which is then in the place of the diffusion head.
        least_scale: of these, the least standard deviation.
    """

    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 16,
        patch_size: int = 1,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 24,
        heads: int = 12,
        head_depth: int = 6,
        head_width: int = 1024,
        dropout: float = 0.1,
        label_dropout: float = 0.1,
        diffusion_batch_mul: int = 4,
        position_std: float = 0.02,
        components: int | None = None,
        least_scale: float = PUBLISHED_SCALE,
    ) -> None:
        check_numbers(CausalAR.__init__, locals())
        super().__init__((latent_channels, latent_size, latent_size), patch_size, num_classes, width, depth, heads)
        self.label_dropout, self.diffusion_batch_mul = label_dropout, diffusion_batch_mul

        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last one is no class
        self.token_embed = nn.Linear(self.token_channels, width)
        self.positions = nn.Parameter(torch.randn(1, self.max_stages, width) * position_std)
        self.blocks = nn.ModuleList(
            Block(width, heads, attn_dropout=dropout, proj_dropout=dropout, causal=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.diffloss: Any = token_head(
            self.token_channels, width, head_depth, head_width, VPCosine(learns_variance=True), components, least_scale
        )
        self.process = self.head.process
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears and normal embeddings, and the head as DiT's."""
        start_linears(self)
        nn.init.normal_(self.class_emb.weight, std=0.02)
        self.head.initialize()

    @property
    def head(self) -> TokenHead:
        return self.diffloss

    def embed_classes(self, labels: Tensor) -> Tensor:
        return self.class_emb(labels)[:, None]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.token_embed(tokens)

    def backbone(self, x: Tensor, start: int = 0, caches: Sequence[KVCache] = ()) -> Tensor:
        past: Sequence[Past | None] = [Past(cache, start) for cache in caches] or [None] * len(self.blocks)
        x = x + self.positions[:, start : start + x.shape[1]]
        for block, seen in zip(self.blocks, past, strict=True):
            x = block(x, seen)
        return self.norm(x)

    def losses(self, latents: Tensor, condition: Tensor | None, generator: torch.Generator | None = None) -> Losses:
        tokens = patchify(latents, self.patch_size)
        (B, N, _), device = tokens.shape, tokens.device
        # On the CPU, so that a seed gives the same numbers on every device.
        dropped = torch.rand(B, generator=generator) < (self.label_dropout if self.training else 0.0)
        corruption = self.head.corruption((self.diffusion_batch_mul, B, N), generator)

        z = self.condition_all(tokens, condition, dropped.to(device))
        return self.losses_of(self.head.loss(tokens, z, *(part.to(device) for part in corruption)))
