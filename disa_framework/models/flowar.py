"""FlowAR, next-scale prediction with a velocity head (Ren et al., arXiv 2412.15205).

Letters: `B` batch, `C` latent channels, `s` side of a scale, `n = s s` tokens of a stage, `L` tokens of all scales,
`K` stages, `w` width, `d` width of an attention head, `G` guidance branches (1 or 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal
from disa_framework.nn.adaln import AdaptiveBlock, RMSNorm, allocate_caches, block_causal_mask
from disa_framework.nn.attention import KVCache, Past
from disa_framework.nn.flow_head import FlowHead
from disa_framework.nn.rotary import grid_positions, rotary
from disa_framework.nn.time import flow_times
from disa_framework.nn.tokens import patchify, unpatchify
from disa_framework.nn.transformer import start_linears
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.sampling.noise import NoiseSource
from disa_framework.solvers.process import Nodes, RectifiedFlow
from disa_framework.solvers.table import Denoiser
from disa_framework.values import check_numbers


@dataclass(frozen=True)
class Tables:
    """Rotary tables of some scales, as `RotaryEmbedding.table` makes them."""

    encoder: Tensor
    decoder: Tensor
    head: Tensor


@dataclass(frozen=True)
class FlowARState:
    """A run between two stages.

    Attributes:
        class_embedding: `[G B, 1, w]`, conditional rows first.
        caches: keys and values of each block, encoder first.
        tables: of each stage.
        sampling: of the run.
        tokens: `[B, n, C]` of the last scale drawn; `None` before the first.
    """

    class_embedding: Tensor
    caches: list[KVCache]
    tables: list[Tables]
    sampling: SamplingConfig
    tokens: Tensor | None = None


@dataclass(frozen=True)
class TrainingDraws:
    """Everything random in one evaluation of the training loss.

    Attributes:
        dropped: `[B]` bool, samples trained without their class.
        times: `[K, B]` in [0, 1].
        noise: `[B, n, C]` of each scale.
    """

    dropped: Tensor
    times: Tensor
    noise: list[Tensor]


class FlowAR(ARDiffusionModel[FlowARState]):
    """Class-conditional generator that draws an image scale after scale.

    Args:
        latent_size: side of the square latents.
        latent_channels: `C`.
        num_classes: labels are 0 … num_classes - 1.
        scales: sides of the grids that are drawn, the last one `latent_size`.
        width: of the backbone.
        encoder_depth, encoder_heads, decoder_depth, decoder_heads: of its two transformers.
        head_depth, head_width: of the velocity head.
        cross_attention: whether the head attends to the conditioning (FlowAR-L and -H).
        mlp_ratio: of the backbone's MLPs, before gating.
        attn_dropout, proj_dropout: in training.
        label_dropout: share of training samples without a class, for guidance.
        position_std: standard deviation of the initial position tables.
    """

    def __init__(
        self,
        latent_size: int = 16,
        latent_channels: int = 16,
        num_classes: int = 1000,
        scales: Sequence[int] = (1, 2, 4, 8, 16),
        width: int = 768,
        encoder_depth: int = 6,
        encoder_heads: int = 12,
        decoder_depth: int = 6,
        decoder_heads: int = 12,
        head_depth: int = 2,
        head_width: int = 1024,
        cross_attention: bool = False,
        mlp_ratio: float = 4.0,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        label_dropout: float = 0.1,
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_numbers(FlowAR.__init__, locals())
        if list(scales) != sorted(set(scales)) or not scales or scales[0] < 1 or scales[-1] != latent_size:
            raise ValueError(f"scales must grow from at least 1 to latent_size {latent_size}, got {list(scales)}")
        self.process = RectifiedFlow()
        self.latent_shape = (latent_channels, latent_size, latent_size)
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.scales = tuple(scales)
        self.min_stages = self.max_stages = len(scales)
        sizes = [s * s for s in scales]
        length = sum(sizes)
        self.ends = tuple(accumulate(sizes))

        def positions() -> nn.Parameter:
            return nn.Parameter(torch.randn(1, length, width) * position_std)

        def blocks(depth: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                AdaptiveBlock(width, heads, mlp_ratio, attn_dropout, proj_dropout) for _ in range(depth)
            )

        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.z_proj = nn.Linear(latent_channels, width)
        self.z_proj_ln = RMSNorm(width)
        self.encoder_pos_embed_learned = positions()
        self.encoder_blocks = blocks(encoder_depth, encoder_heads)
        self.encoder_norm = RMSNorm(width)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = positions()
        self.decoder_blocks = blocks(decoder_depth, decoder_heads)
        self.decoder_norm = RMSNorm(width)
        self.diffusion_pos_embed_learned = positions()
        self.flownet = FlowHead(latent_channels, width, head_depth, head_width, cross_attention)
        self._known_tables: dict[tuple[torch.device, bool], list[Tables]] = {}
        self.register_buffer("mask", block_causal_mask(sizes))
        self._initialize()

    mask: Tensor

    def _initialize(self) -> None:
        """Xavier linears and normal embeddings; modulations and output start at zero (DiT)."""
        start_linears(self, lambda name: "ada" in name or name == "flownet.final_layer.linear")
        nn.init.normal_(self.class_emb.weight, std=0.02)
        self.flownet.time_embed.initialize()

    @property
    def head(self) -> nn.Module:
        return self.flownet

    def stage_tokens(self, stage: int) -> slice:
        """Where the tokens of a stage lie in the sequence of all scales."""
        return slice(self.ends[stage] - self.scales[stage] ** 2, self.ends[stage])

    # --- backbone ---------------------------------------------------------------------------------------

    def backbone(
        self,
        x: Tensor,
        class_embedding: Tensor,
        tables: Tables,
        place: slice,
        caches: Sequence[KVCache] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Conditioning `z [B, n, w]` of the tokens at `place`, whose inputs are `x [B, n, w]`.

        Args:
            class_embedding: `[B, 1, w]`.
            tables: of these tokens.
            caches: keys and values of what comes before `place`; `None` if nothing does.
            mask: added to the scores of the attention.
        """
        past = iter([Past(cache, place.start) for cache in caches] if caches else [None] * self.depth)
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[:, place])
        for block in self.encoder_blocks:
            x = block(x, class_embedding, tables.encoder, next(past), mask)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, place]
        for block in self.decoder_blocks:
            x = block(x, class_embedding, tables.decoder, next(past), mask)
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[:, place]

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return len(self.encoder_blocks) + len(self.decoder_blocks)

    def tables(self, scales: Sequence[int]) -> Tables:
        """Rotary tables of these scales, one behind the other."""
        positions = torch.cat([grid_positions(s) for s in scales])
        stacks = (self.encoder_blocks, self.decoder_blocks, self.flownet.res_blocks)
        return Tables(*(rotary(blocks).table(positions) for blocks in stacks))

    def _tables_of_stages(self) -> list[Tables]:
        """Made once for a device: positions would be brought there for every batch, and be waited for."""
        key = self.device, torch.is_inference_mode_enabled()  # whose tensors are of no use outside of it
        if key not in self._known_tables:
            self._known_tables[key] = [self.tables([s]) for s in self.scales]
        return self._known_tables[key]

    def next_input(self, tokens: Tensor, stage: int) -> Tensor:
        """Tokens `[B, n, C]` of a stage as the next one sees them: enlarged to the full side (bicubic), and averaged
        over areas."""
        image = self.enlarged(tokens, self.scales[stage])
        return patchify(F.interpolate(image, size=self.scales[stage + 1], mode="area"), 1)

    def enlarged(self, tokens: Tensor, side: int) -> Tensor:
        """Latents `[B, C, H, W]` of the tokens of a scale (bicubic)."""
        return F.interpolate(unpatchify(tokens, 1, side, side), size=self.latent_shape[1:], mode="bicubic")

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> FlowARState:
        null = self.class_emb.weight[-1].expand(noise.batch_size, -1)
        embedding = null if condition is None else self.class_emb(condition)
        if sampling.branches_from(0) > 1:
            embedding = torch.cat((embedding, null))
        blocks = (*self.encoder_blocks, *self.decoder_blocks)
        caches = allocate_caches(blocks, len(embedding), self.ends[-1], embedding)
        return FlowARState(embedding[:, None], caches, self._tables_of_stages(), sampling)

    def propose(self, state: FlowARState, stage: int) -> Proposal:
        # Where guidance does not act, the unconditional branch is computed for the keys that later stages need.
        guidance, G = state.sampling.guidance_at(stage), state.sampling.branches_from(stage)
        place, x = self.stage_tokens(stage), state.class_embedding
        if state.tokens is not None:
            x = self.z_proj(self.next_input(state.tokens, stage - 1)).repeat(G, 1, 1)
        tables = state.tables[stage]
        z = self.backbone(x, state.class_embedding[: len(x)], tables, place, state.caches)
        z = z[: len(x) // G * guidance.branches]
        denoise = self._denoiser(z, tables.head, guidance.rising(stage, self.max_stages), guidance)
        return Proposal((z.shape[1], self.latent_shape[0]), denoise, z=z)

    def accept(self, state: FlowARState, proposal: Proposal, tokens: Tensor) -> FlowARState:
        return replace(state, tokens=tokens)

    def finish(self, state: FlowARState) -> Tensor:
        """As the contract says; of an earlier scale enlarged."""
        assert state.tokens is not None
        side = math.isqrt(state.tokens.shape[1])
        whole = side == self.scales[-1]
        return unpatchify(state.tokens, 1, side, side) if whole else self.enlarged(state.tokens, side)

    def _denoiser(self, z: Tensor, table: Tensor, scale: float, guidance: Guidance) -> Denoiser:
        """The head for conditioning `z [G B, n, w]`, guided within the interval."""
        net, conditioning = self.flownet, self.flownet.condition(z, table)

        def embed(nodes: Nodes) -> list[tuple[Tensor, ...]]:
            return list(zip(*net.embed_times(flow_times(nodes.on(z.device), z.device)), strict=True))

        return guided(lambda x, times: net(x, times, conditioning), embed, self.process, guidance, scale)

    # --- training ---------------------------------------------------------------------------------------

    def losses(
        self,
        latents: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
    ) -> Losses:
        """As the contract says; `draws` replaces the generator. Scales count by their share of the last one's
        tokens."""
        draws = draws or self.training_draws(len(latents), latents.device, generator)
        targets = self.targets(latents)
        z = self.condition_all(targets, condition, draws.dropped)
        losses = torch.stack(self.scale_losses(targets, z, draws)).mean(dim=1)
        shares = torch.tensor([s * s / self.scales[-1] ** 2 for s in self.scales], device=z.device)
        return Losses.of_stages((losses * shares).sum(), losses)

    def targets(self, latents: Tensor) -> list[Tensor]:
        """What each stage should draw, `[B, n, C]`: the latents averaged over areas."""
        return [patchify(F.interpolate(latents, size=s, mode="area"), 1) for s in self.scales]

    def condition_all(self, targets: list[Tensor], condition: Tensor | None, dropped: Tensor) -> Tensor:
        """`z [B, L, w]` of all scales, each given the true earlier ones."""
        null = torch.full_like(dropped, self.num_classes, dtype=torch.int64)
        labels = null if condition is None else torch.where(dropped, null, condition)
        embedding = self.class_emb(labels)[:, None]
        seen = [self.z_proj(self.next_input(tokens, k)) for k, tokens in enumerate(targets[:-1])]
        x = torch.cat((embedding, *seen), dim=1)
        return self.backbone(x, embedding, self.tables(self.scales), slice(0, self.ends[-1]), mask=self.mask)

    def scale_losses(self, targets: list[Tensor], z: Tensor, draws: TrainingDraws) -> list[Tensor]:
        """Mean squared error of the velocity `[B]` at each scale."""
        losses = []
        for k, (clean, t, noise) in enumerate(zip(targets, draws.times, draws.noise, strict=True)):
            conditioning = self.flownet.condition(z[:, self.stage_tokens(k)], self.tables([self.scales[k]]).head)
            noisy = torch.lerp(clean, noise, t[:, None, None])
            times = self.flownet.embed_times(flow_times(t[:, None], z.device))
            v = self.flownet(noisy, times, conditioning)
            losses.append((v - self.process.target(clean, noise)).square().mean(dim=(1, 2)))
        return losses

    def training_draws(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> TrainingDraws:
        """Draws on the CPU, then moves to `device`."""
        dropped = torch.rand(batch_size, generator=generator) < (self.label_dropout if self.training else 0.0)
        times = torch.rand(self.max_stages, batch_size, generator=generator)
        shapes = [(batch_size, s * s, self.latent_shape[0]) for s in self.scales]
        noise = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        return TrainingDraws(dropped.to(device), times.to(device), noise)


def flowar_small() -> FlowAR:
    """FlowAR-S: 172 million parameters, 256x256 ImageNet."""
    return FlowAR()


def flowar_large() -> FlowAR:
    """FlowAR-L: 587 million parameters."""
    return FlowAR(
        width=1024, encoder_depth=8, encoder_heads=16, decoder_depth=8, decoder_heads=16, head_depth=12,
        cross_attention=True,
    )  # fmt: skip


def flowar_huge() -> FlowAR:
    """FlowAR-H: 1,913 million parameters."""
    return FlowAR(
        width=1536, encoder_depth=15, encoder_heads=16, decoder_depth=15, decoder_heads=16, head_depth=12,
        head_width=1536, cross_attention=True,
    )  # fmt: skip
