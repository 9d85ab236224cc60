"""SphereAR, tokens of constant norm in raster order, one a stage (Ke & Xue, arXiv 2509.24335).

Its code has no licence, so this is made from the mathematics alone.

Letters: `B` batch, `N` tokens and stages, `D` token channels, `L` tokens at hand, `w` width, `R` repeats of the
loss, `m` tokens of the class, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.base import Losses, Proposal
from disa_framework.models.causal import RasterAR, RasterState
from disa_framework.nn.adaln import RMSNorm
from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.gated import GatedBlock, VelocityHead
from disa_framework.nn.precise import precise
from disa_framework.nn.rotary import RotaryTable
from disa_framework.nn.tokens import patchify
from disa_framework.nn.transformer import start_linears
from disa_framework.sampling.guidance import Guidance
from disa_framework.solvers.process import RectifiedFlow
from disa_framework.values import check_numbers


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random in one evaluation of the training loss.

    Attributes:
        dropped: `[B]` bool, samples trained without their class.
        times: `[R, B, N]` in (0, 1).
        noise: `[R, B, N, D]`.
    """

    dropped: Tensor
    times: Tensor
    noise: Tensor


class SphereAR(RasterAR):
    """Class-conditional generator of latents whose every place has the norm `sqrt(D)`.

    What a stage draws is put back on that sphere, guided or not. Where guidance grows from nothing, each branch begins
    with a token of its own, as published: the first stage then draws two.

    Args:
        latent_size: side of the square latents; a latent pixel is a token.
        latent_channels: `D`.
        num_classes: labels are 0 … num_classes - 1.
        class_tokens: `m`, how many tokens tell the class.
        width, depth, heads: of the causal transformer.
        head_depth, head_width: of the velocity head.
        modulations: of the head, each shared by consecutive blocks.
        label_dropout: share of training samples without a class, for guidance.
        diffusion_batch_mul: `R`, how many times and noises a token is trained at.
        position_std: standard deviation of the initial table of what the head is told of a token's place.
    """

    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 16,
        num_classes: int = 1000,
        class_tokens: int = 16,
        width: int = 768,
        depth: int = 24,
        heads: int = 12,
        head_depth: int = 6,
        head_width: int = 768,
        modulations: int = 2,
        label_dropout: float = 0.1,
        diffusion_batch_mul: int = 4,
        position_std: float = 0.02,
    ) -> None:
        check_numbers(SphereAR.__init__, locals())
        shape = (latent_channels, latent_size, latent_size)
        super().__init__(shape, 1, num_classes, width, depth, heads, class_tokens)
        self.process = RectifiedFlow()
        self.label_dropout, self.diffusion_batch_mul = label_dropout, diffusion_batch_mul

        self.cls_embedding = nn.Embedding(num_classes + 1, class_tokens * width)
        self.proj_in = nn.Linear(latent_channels, width)
        self.emb_norm = RMSNorm(width)
        self.layers = nn.ModuleList(GatedBlock(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.pos_for_diff = nn.Embedding(self.max_stages, width)
        # Its published name is that of a property of the contract, which an assignment would not get past.
        self._modules["head"] = VelocityHead(
            latent_channels, width, head_depth, head_width, modulations, self.process
        )  # fmt: skip
        self.turns = RotaryTable(width // heads, _positions(class_tokens, latent_size))
        self._initialize(position_std)

    def _initialize(self, position_std: float) -> None:
        """Xavier linears and normal embeddings, and the head as DiT's."""
        start_linears(self)
        nn.init.normal_(self.cls_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_for_diff.weight, std=position_std)
        self.head.initialize()

    @property
    def head(self) -> VelocityHead:
        return cast(VelocityHead, self._modules["head"])

    def embed_classes(self, labels: Tensor) -> Tensor:
        return self.cls_embedding(labels).unflatten(1, (self.class_tokens, -1))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.proj_in(tokens)

    def backbone(self, x: Tensor, start: int = 0, caches: Sequence[KVCache] = ()) -> Tensor:
        past: Sequence[Past | None] = [Past(cache, start) for cache in caches] or [None] * self.depth
        end, table = start + x.shape[1], self.turns(slice(start, start + x.shape[1]))
        x = self.emb_norm(x)
        for layer, seen in zip(self.layers, past, strict=True):
            x = layer(x, table, seen)
        first = max(start, self.class_tokens - 1)  # which a token of the image follows
        places = slice(first - self.class_tokens + 1, end - self.class_tokens + 1)
        return self.norm(x[:, first - start :]) + self.pos_for_diff.weight[places]

    def scale(self, guidance: Guidance, stage: int) -> float:
        return guidance.at(stage / self.max_stages)

    # --- sampling ---------------------------------------------------------------------------------------

    def propose(self, state: RasterState, stage: int) -> Proposal:
        sampling = state.sampling
        grows = sampling.guidance_at(stage).active and self.scale(sampling.guidance, stage) == 1
        if stage or not grows or sampling.branches_from(1) == 1:
            return super().propose(state, stage)
        z = torch.cat(self.condition_next(state, stage).chunk(2), dim=1)  # [B, 2, w]
        return Proposal((2, self.token_channels), self.head.denoiser(z, 1.0, Guidance()), z=z)

    def accept(self, state: RasterState, proposal: Proposal, tokens: Tensor) -> RasterState:
        return super().accept(state, proposal, on_sphere(tokens))

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
        tokens = patchify(latents, 1)
        z = self.condition_all(tokens, condition, draws.dropped)
        return self.losses_of(self.head.loss(tokens, z, draws.times, draws.noise))

    def training_draws(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> TrainingDraws:
        """Draws on the CPU, then moves to `device`."""
        dropped = torch.rand(batch_size, generator=generator) < (self.label_dropout if self.training else 0.0)
        shape = (self.diffusion_batch_mul, batch_size, self.max_stages)
        times, noise = self.head.corruption(shape, generator)
        return TrainingDraws(dropped.to(device), times.to(device), noise.to(device))


def on_sphere(x: Tensor) -> Tensor:
    """`x [..., D]` at the norm `sqrt(D)`."""
    return F.normalize(precise(x), dim=-1, eps=1e-7).mul(math.sqrt(x.shape[-1])).to(x.dtype)


def _positions(class_tokens: int, side: int) -> Tensor:
    """Column and row of each token of class and image: `[m + N, 2]`."""
    axis = torch.arange(side) + 1.5
    image = torch.cartesian_prod(axis, axis).flip(1)
    return torch.cat((image.new_zeros(class_tokens, 2), image))


def spherear_b() -> SphereAR:
    """SphereAR-B: 204 million parameters, 256x256 ImageNet."""
    return SphereAR()


def spherear_l() -> SphereAR:
    """SphereAR-L: 476 million parameters."""
    return SphereAR(width=1024, depth=32, heads=16, head_depth=8, head_width=1024)


def spherear_h() -> SphereAR:
    """SphereAR-H: 944 million parameters."""
    return SphereAR(width=1280, depth=40, heads=20, head_depth=12, head_width=1280, modulations=3)
