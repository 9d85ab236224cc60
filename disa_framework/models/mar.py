"""MAR, the masked autoregressive model with a diffusion head (Li et al., arXiv 2406.11838).

Letters: `B` batch, `N` tokens, `D` token channels, `K` stages, `n` tokens of a stage, `m` masked tokens,
`w` width, `S` buffer slots, `R` repeats of the diffusion loss, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal, TokenLayout
from disa_framework.nn.diffusion_head import TokenHead
from disa_framework.nn.mixture_head import PUBLISHED_SCALE
from disa_framework.nn.token_head import token_head
from disa_framework.nn.tokens import gather_heads, gather_tokens, patchify, unpatchify
from disa_framework.nn.transformer import Block, start_linears
from disa_framework.runtime.feature_cache import Backbone, Memory
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers.process import VPCosine
from disa_framework.values import check_numbers


@dataclass(frozen=True)
class MARState:
    """A run between two stages, of MAR or of a model around one.

    Attributes:
        tokens: `[B, N, D]`, 0 where masked.
        order: `[B, N]` places, those that are drawn first in front.
        ends: tokens drawn after each stage.
        context: what the backbone is given beside tokens; of MAR, the class embedding `[G B, w]`, conditional
            rows first.
        sampling: of the run.
        memory: features of the stage before, where they are cached.
    """

    tokens: Tensor
    order: Tensor
    ends: tuple[int, ...]
    context: Any
    sampling: SamplingConfig
    memory: Memory | None = None

    @classmethod
    def begin(
        cls, tokens: Tensor, context: Any, sampling: SamplingConfig, noise: NoiseSource, layout: TokenLayout
    ) -> MARState:
        """The state before the first of `K` stages."""
        order = layout.places(sampling, noise, tokens.device).expand(len(tokens), -1)
        return cls(tokens, order, layout.ends(sampling), context, sampling)

    def places(self, stage: int) -> tuple[Tensor, Tensor]:
        """Of the tokens that a stage sees `[B, N - m]`, the first drawn in front, and of those that it draws `[B, n]`,
        in raster order."""
        start = self.ends[stage - 1] if stage else 0
        return self.order[:, :start], self.order[:, start : self.ends[stage]].sort(dim=1).values

    def accept(self, proposal: Proposal, tokens: Tensor) -> MARState:
        """The state with the tokens `[B, n, D]` in their places, and what the stage leaves to remember."""
        places, memory = proposal.places
        filled = self.tokens.scatter(1, places[..., None].expand_as(tokens), tokens)
        return replace(self, tokens=filled, memory=memory)


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random in one evaluation of the training loss.

    Attributes:
        order: `[B, N]` permutations.
        masked: how many leading tokens of each order are masked.
        dropped: `[B]` bool, samples trained without their class.
        corruption: as the head has it, of masked tokens; of a diffusion head `[R, B, m]` timesteps and noise.
    """

    order: Tensor
    masked: int
    dropped: Tensor
    corruption: tuple[Tensor, ...]

    def places(self) -> tuple[Tensor, Tensor]:
        """Of visible tokens `[B, N - m]`, and of masked ones `[B, m]`."""
        return self.order[:, self.masked :], self.order[:, : self.masked]

    def losses(self, total: Tensor) -> Losses:
        """The loss of the masked tokens, all of which come next to the visible ones."""
        return Losses(total, total.detach()[None], (1 - self.masked / self.order.shape[1],))


@dataclass(frozen=True)
class Positions:
    """Learned tables of positions for one image size.

    Attributes:
        encoder, decoder: `[1, S + N, w]`, the buffer's in front.
        head: `[1, N, w]`, added to the conditioning of the head.
    """

    encoder: Tensor
    decoder: Tensor
    head: Tensor


class MAR(ARDiffusionModel[MARState]):
    """Class-conditional masked autoregressive generator.

    Args:
        latent_size: side of the square latents, in latent pixels.
        latent_channels: `C`.
        patch_size: side of a token, in latent pixels.
        num_classes: labels are 0 … num_classes - 1.
        encoder_width, encoder_depth, encoder_heads: the encoder's transformer.
        decoder_width, decoder_depth, decoder_heads: the decoder's transformer.
        head_depth, head_width: the diffusion head; hidden layers of a mixture head.
        buffer_size: `S`, slots in front of the tokens that carry the class embedding.
        mlp_ratio: hidden over outer width of the transformers' MLPs.
        norm_eps: of the transformers' LayerNorms.
        attn_dropout, proj_dropout: in training.
        label_dropout: share of training samples without a class, for guidance.
        mask_ratio_mean, mask_ratio_std, mask_ratio_min: the normal, cut to [min, 1], that a training batch's
            share of masked tokens is drawn from.
        diffusion_batch_mul: `R`, how many times and noises a masked token is trained at; a mixture head has neither.
        position_std: standard deviation of the initial position tables.
        max_beta: of the diffusion head's process, see `VPCosine`.
        components: Gaussians of a mixture head (GIVT, arXiv 2312.02116), which is then in the place of the diffusion
            head.
        least_scale: of these, the least standard deviation.
        self_distillation: share of the training of a flow-map head (arXiv 2505.18825) that is spent on jumps, as
            published 0.25; the head is then in the place of the diffusion head, and draws a token in few steps.
    """

    caches_features = True

    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 16,
        patch_size: int = 1,
        num_classes: int = 1000,
        encoder_width: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        decoder_width: int = 768,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        head_depth: int = 6,
        head_width: int = 1024,
        buffer_size: int = 64,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        attn_dropout: float = 0.1,
        proj_dropout: float = 0.1,
        label_dropout: float = 0.1,
        mask_ratio_mean: float = 1.0,
        mask_ratio_std: float = 0.25,
        mask_ratio_min: float = 0.7,
        diffusion_batch_mul: int = 4,
        position_std: float = 0.02,
        max_beta: float = 0.999,
        components: int | None = None,
        least_scale: float = PUBLISHED_SCALE,
        self_distillation: float | None = None,
    ) -> None:
        super().__init__()
        check_numbers(MAR.__init__, locals())
        if latent_size % patch_size:
            raise ValueError(f"latent_size {latent_size} is not divisible by patch_size {patch_size}")
        if mask_ratio_min >= 1:
            raise ValueError(f"mask_ratio_min must lie in [0, 1), got {mask_ratio_min}")
        if not mask_ratio_std:
            raise ValueError(f"mask_ratio_std must be above 0, got {mask_ratio_std}")
        side, channels = latent_size // patch_size, latent_channels * patch_size**2
        self.latent_shape = (latent_channels, latent_size, latent_size)
        self.num_classes = num_classes
        self.num_tokens = self.max_stages = side**2
        self.token_channels, self.patch_size, self.buffer_size = channels, patch_size, buffer_size
        self.label_dropout, self.diffusion_batch_mul = label_dropout, diffusion_batch_mul
        self.mask_ratio = (mask_ratio_mean, mask_ratio_std, mask_ratio_min)

        def positions(length: int, width: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(1, length, width) * position_std)

        def blocks(depth: int, width: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, heads, mlp_ratio, norm_eps, attn_dropout, proj_dropout) for _ in range(depth)
            )

        length = buffer_size + self.num_tokens
        self.class_emb = nn.Embedding(num_classes, encoder_width)
        self.fake_latent = nn.Parameter(torch.randn(1, encoder_width) * 0.02)
        self.z_proj = nn.Linear(channels, encoder_width)
        self.z_proj_ln = nn.LayerNorm(encoder_width, eps=1e-6)
        self.encoder_pos_embed_learned = positions(length, encoder_width)
        self.encoder_blocks = blocks(encoder_depth, encoder_width, encoder_heads)
        self.encoder_norm = nn.LayerNorm(encoder_width, eps=norm_eps)
        self.decoder_embed = nn.Linear(encoder_width, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_width) * 0.02)
        self.decoder_pos_embed_learned = positions(length, decoder_width)
        self.decoder_blocks = blocks(decoder_depth, decoder_width, decoder_heads)
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=norm_eps)
        self.diffusion_pos_embed_learned = positions(self.num_tokens, decoder_width)
        process = VPCosine(learns_variance=True, max_beta=max_beta)
        self.diffloss: Any = token_head(
            channels, decoder_width, head_depth, head_width, process, components, least_scale, self_distillation
        )
        self.process = self.head.process
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears and normal embeddings; modulations and output start at zero (DiT)."""
        start_linears(self)
        nn.init.normal_(self.class_emb.weight, std=0.02)
        self.head.initialize()

    @property
    def head(self) -> TokenHead:
        return self.diffloss

    @property
    def layout(self) -> TokenLayout:
        side = math.isqrt(self.num_tokens)
        return TokenLayout.published(side, side)

    # --- backbone ---------------------------------------------------------------------------------------

    @property
    def positions(self) -> Positions:
        """The tables as they were trained, for square images of `latent_size`."""
        return Positions(
            self.encoder_pos_embed_learned, self.decoder_pos_embed_learned, self.diffusion_pos_embed_learned
        )

    def backbone(self, tokens: Tensor, label_embedding: Tensor, visible: Tensor, drawn: Tensor) -> Tensor:
        """Conditioning `z [B, n, w]` of the tokens at `drawn [B, n]`, given those at `visible [B, m]`.

        Args:
            tokens: `[B, N, D]`; only visible ones are read.
            label_embedding: `[B, w]`.
        """
        encoded = self.encode(gather_tokens(tokens, visible), label_embedding, visible, self.positions)
        return self.decode(encoded, visible, drawn, self.positions)

    @property
    def encoder(self) -> list[Block]:
        return cast(list[Block], list(self.encoder_blocks))

    @property
    def decoder(self) -> list[Block]:
        return cast(list[Block], list(self.decoder_blocks))

    def encode(self, seen: Tensor, label_embedding: Tensor, visible: Tensor, positions: Positions) -> Tensor:
        """Encodes visible tokens `seen [B, m, D]` at `visible [B, m]` behind the buffer: `[B, S + m, w]`."""
        x = self.embed(seen, label_embedding, visible, positions)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, visible: Tensor, drawn: Tensor, positions: Positions) -> Tensor:
        """Fills the masked places, and returns `z [B, n, w]` at `drawn [B, n]`."""
        x = self.fill(encoded, visible, positions)
        *blocks, last = self.decoder
        for block in blocks:
            x = block(x)
        q, k, v = last.project(x)  # only drawn tokens are read from here on
        places = drawn + self.buffer_size
        return self.read(last.update(gather_tokens(x, places), gather_heads(q, places), k, v), drawn, positions)

    def embed(self, seen: Tensor, label_embedding: Tensor, visible: Tensor, positions: Positions) -> Tensor:
        """What the encoder's blocks are given, `[B, S + m, w]`."""
        S = self.buffer_size
        buffer = label_embedding[:, None] + positions.encoder[:, :S]
        image = self.z_proj(seen) + gather_tokens(positions.encoder[:, S:], visible)
        return self.z_proj_ln(torch.cat((buffer, image), dim=1))

    def fill(self, encoded: Tensor, visible: Tensor, positions: Positions) -> Tensor:
        """What the decoder's blocks are given, `[B, S + N, w]`."""
        S, N = self.buffer_size, positions.head.shape[1]
        x = self.decoder_embed(encoded)
        image = self.mask_token.to(x.dtype).expand(len(x), N, -1)
        image = image.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x[:, S:])
        return torch.cat((x[:, :S], image), dim=1) + positions.decoder

    def read(self, x: Tensor, drawn: Tensor, positions: Positions) -> Tensor:
        """`z [B, n, w]` of what the decoder's blocks made of the tokens at `drawn [B, n]`."""
        return self.decoder_norm(x) + gather_tokens(positions.head, drawn)

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> MARState:
        null = self.fake_latent.expand(noise.batch_size, -1)
        label_embedding = null if condition is None else self.class_emb(condition)
        if sampling.branches_from(0) > 1:
            label_embedding = torch.cat((label_embedding, null))
        blank = null.new_zeros(noise.batch_size, self.num_tokens, self.token_channels)
        return MARState.begin(blank, label_embedding, sampling, noise, self.layout)

    def propose(self, state: MARState, stage: int) -> Proposal:
        visible, drawn = state.places(stage)
        cache, G = state.sampling.cache, state.sampling.guidance_at(stage).branches
        context = state.context[: G * len(drawn)]
        if cache is not None:
            backbone = Backbone(self, self.positions, state.tokens, visible, drawn, G, context)
            z, memory = backbone.conditioning(cache, stage, state.memory)
            return self.proposal(state, stage, drawn, z, memory)
        rows = state.tokens.repeat(G, 1, 1), context, visible.repeat(G, 1), drawn.repeat(G, 1)
        return self.proposal(state, stage, drawn, self.backbone(*rows))

    def proposal(self, state: MARState, stage: int, drawn: Tensor, z: Tensor, memory: Memory | None = None) -> Proposal:
        """The head for the tokens at `drawn [B, n]`, under their conditioning `z [G B, n, w]`."""
        scale = state.sampling.guidance_at(stage).at(self.progress(state, stage))
        denoise = self.head.denoiser(z, scale, state.sampling.guidance)
        return Proposal((z.shape[1], self.token_channels), denoise, (drawn, memory), z)

    def progress(self, state: MARState, stage: int) -> float:
        """The share of the image that guidance takes for drawn at a stage."""
        # The published code keeps one token masked when it sets the scale, also at the last stage.
        N = state.order.shape[1]
        return min(state.ends[stage], N - 1) / N

    def accept(self, state: MARState, proposal: Proposal, tokens: Tensor) -> MARState:
        return state.accept(proposal, tokens)

    def finish(self, state: MARState) -> Tensor:
        return unpatchify(state.tokens, self.patch_size, *self.latent_shape[1:])

    # --- training ---------------------------------------------------------------------------------------

    def losses(
        self,
        latents: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
    ) -> Losses:
        """As the contract says; `draws` replaces the generator."""
        tokens = patchify(latents, self.patch_size)
        draws = draws or self.training_draws(len(tokens), tokens.device, generator)
        null = self.fake_latent.expand(len(tokens), -1)
        embedding = null if condition is None else self.class_emb(condition)
        embedding = torch.where(draws.dropped[:, None], null, embedding)
        return self.masked_losses(tokens, self.backbone(tokens, embedding, *draws.places()), draws)

    def masked_losses(self, tokens: Tensor, z: Tensor, draws: TrainingDraws) -> Losses:
        """Of the masked ones of `tokens [B, N, D]`, under their conditioning `z [B, m, w]`."""
        return draws.losses(self.head.loss(gather_tokens(tokens, draws.places()[1]), z, *draws.corruption).mean())

    def training_draws(
        self,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        num_tokens: int | None = None,
    ) -> TrainingDraws:
        """Draws on the CPU (the number of masked tokens decides shapes), then moves to `device`.

        Args:
            num_tokens: `N` of the images, as many as the model draws by default.
        """
        B, N = batch_size, num_tokens or self.num_tokens
        order = torch.rand(B, N, generator=generator).argsort(dim=1)
        m = self.count_masked(N, generator)
        dropped = torch.rand(B, generator=generator) < (self.label_dropout if self.training else 0.0)
        corruption = self.head.corruption((self.diffusion_batch_mul, B, m), generator)
        return TrainingDraws(order.to(device), m, dropped.to(device), tuple(part.to(device) for part in corruption))

    def count_masked(self, num_tokens: int, generator: torch.Generator | None) -> int:
        """How many tokens of each image of a training batch are masked."""
        return math.ceil(num_tokens * truncated_normal(*self.mask_ratio, generator))


def truncated_normal(mean: float, std: float, low: float, generator: torch.Generator | None) -> float:
    """One draw of a normal cut to [low, 1], by inverting its distribution function."""
    ends = torch.tensor([(low - mean) / std, (1.0 - mean) / std], dtype=torch.float64)
    p_low, p_high = torch.special.ndtr(ends).tolist()
    u = torch.rand((), generator=generator, dtype=torch.float64).item()
    p = torch.tensor(p_low + u * (p_high - p_low), dtype=torch.float64)
    return float((mean + std * torch.special.ndtri(p)).clamp(low, 1.0))


def published_sizes(width: int, depth: int, heads: int, head_depth: int, head_width: int) -> dict[str, int]:
    """Arguments of a published size, whose encoder and decoder are alike."""
    sides = {f"{side}_{name}": value
             for side in ("encoder", "decoder")
             for name, value in (("width", width), ("depth", depth), ("heads", heads))}  # fmt: skip
    return {**sides, "head_depth": head_depth, "head_width": head_width}


def mar_base() -> MAR:
    """MAR-B: 208 million parameters, 256x256 ImageNet."""
    return MAR(**published_sizes(768, 12, 12, 6, 1024))


def mar_large() -> MAR:
    """MAR-L: 478 million parameters."""
    return MAR(**published_sizes(1024, 16, 16, 8, 1280))


def mar_huge() -> MAR:
    """MAR-H: 942 million parameters."""
    return MAR(**published_sizes(1280, 20, 16, 12, 1536))
