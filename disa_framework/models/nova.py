"""NOVA, text to image: a masked generator whose transformer has read a prompt, with an MLP head (Deng et al., arXiv
2412.14169). The same network draws videos, frame by frame; here it draws images alone.

Letters: `B` batch, `N` tokens, `D` token channels, `C` latent channels, `p` side of a patch, `M` places of the
condition, `T` places of the text, `Z` width of its states, `m` visible tokens, `n` tokens of a stage, `w` width, `R`
repeats of the loss, `G` guidance branches (1 or 2), `g` those at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal, TokenLayout
from disa_framework.models.mar import MARState, TrainingDraws, truncated_normal
from disa_framework.nn.patch_head import FREQUENCIES, TIMES, PatchEmbed, PatchHead
from disa_framework.nn.text import Words, check_prompts, pretrained
from disa_framework.nn.time import sinusoids
from disa_framework.nn.tokens import gather_heads, gather_tokens, patchify, unpatchify
from disa_framework.nn.transformer import Block, start_linears
from disa_framework.runtime.devices import bring
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.noise import NoiseSource
from disa_framework.sampling.order import RandomOrder
from disa_framework.sampling.stage_sizes import RoundedCosineSizes
from disa_framework.solvers.process import Process, RectifiedFlow, VPCosine
from disa_framework.values import check_numbers

ProcessName = Literal["flow", "cosine"]
"""`flow` is `RectifiedFlow`, `cosine` is `VPCosine` without a learned variance."""

_PROCESSES: dict[str, Process] = {"flow": RectifiedFlow(), "cosine": VPCosine()}
_PADDING = 512  # rows of what stands behind a text
_STRIDE = 8  # pixels to a latent of the autoencoder
_EXAMPLE = "microsoft/phi-2"


class NOVA(ARDiffusionModel[MARState]):
    """Draws square images from prompts, which an encoder of texts has read.

    Args:
        latent_size: side of the square latents, in latent pixels.
        latent_channels: `C`.
        patch_size: side of a token, in latent pixels; places of the condition are twice as wide.
        width, heads: of both encoders.
        text_depth, image_depth: their layers; the first reads the text, half of the second sees drawn tokens alone.
        head_depth, head_width: the diffusion head.
        text_width: `Z`.
        text_length: `T`; what is longer is cut off.
        text_encoder: folder or hub name of a language model, such as Phi-2, which stays as it is and is in no file of
            weights; or the words of the prompts, for a model that knows no others.
        tokenizer: folder or hub name of its tokenizer, by default where the language model is.
        process: how the head was trained.
        mlp_ratio: hidden over outer width of the encoders' MLPs.
        label_dropout: share of training samples without a prompt, for guidance.
        mask_ratio_mean, mask_ratio_std, mask_ratio_min: the normal, cut to [min, 1], that a training batch's share of
            masked tokens is drawn from.
        diffusion_batch_mul: `R`, how many times and noises a masked token is trained at.

    Raises:
        ValueError: values out of range, or more words than the text is wide.
        TypeError: the text_encoder is neither.
    """

    image_positions: Tensor
    condition_positions: Tensor
    tables: Tensor

    def __init__(
        self,
        latent_size: int = 128,
        latent_channels: int = 4,
        patch_size: int = 2,
        width: int = 768,
        heads: int = 12,
        text_depth: int = 16,
        image_depth: int = 32,
        head_depth: int = 6,
        head_width: int = 768,
        text_width: int = 2560,
        text_length: int = 256,
        text_encoder: str | Words | None = None,
        tokenizer: str | None = None,
        process: ProcessName = "flow",
        mlp_ratio: float = 4.0,
        label_dropout: float = 0.1,
        mask_ratio_mean: float = 1.0,
        mask_ratio_std: float = 0.25,
        mask_ratio_min: float = 0.7,
        diffusion_batch_mul: int = 4,
    ) -> None:
        super().__init__()
        check_numbers(NOVA.__init__, locals())
        if latent_size % (2 * patch_size):
            raise ValueError(f"latent_size {latent_size} is not divisible by {2 * patch_size}, twice the patch_size")
        if process not in _PROCESSES:
            raise ValueError(f"process must be one of {', '.join(_PROCESSES)}, got {process!r}")
        if width % 4 or text_length > _PADDING:
            raise ValueError(
                f"width must be a multiple of 4 and text_length at most {_PADDING}, got {width} and {text_length}"
            )
        if not isinstance(text_encoder, str | Words | None):
            raise TypeError(f"text_encoder must be a folder, a hub name or Words, got {text_encoder!r}")
        if isinstance(text_encoder, Words) and len(text_encoder.ids) > text_width:
            raise ValueError(f"text_width must be at least {len(text_encoder.ids)}, as there are words")
        self.process = _PROCESSES[process]
        self.latent_shape = (latent_channels, latent_size, latent_size)
        self.side, self.patch_size = latent_size // patch_size, patch_size
        self.num_tokens = self.max_stages = self.side**2
        self.token_channels, self.text_length = latent_channels * patch_size**2, text_length
        self.text_source, self.tokenizer_source = text_encoder, tokenizer or text_encoder
        self.label_dropout, self.diffusion_batch_mul = label_dropout, diffusion_batch_mul
        self.mask_ratio = (mask_ratio_mean, mask_ratio_std, mask_ratio_min)
        size = (width, heads, mlp_ratio, latent_channels)
        self.text_embed = TextEmbed(text_width, width)
        self.mask_embed = MaskEmbed(width)
        self.video_pos_embed = FrameEmbed(width)
        self.video_encoder = Encoder(text_depth, *size, 2 * patch_size)
        self.image_encoder = Encoder(image_depth, *size, patch_size)
        self.image_decoder = PatchHead(head_depth, head_width, width, latent_channels, patch_size)
        self.register_buffer("condition_positions", sine_positions(self.side // 2, width), persistent=False)
        self.register_buffer("image_positions", sine_positions(self.side, width), persistent=False)
        self.register_buffer("tables", _training_tables(self.process), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears; modulations and output of the head start at zero (DiT)."""
        start_linears(self)
        for layer in self.image_decoder.starting_at_zero:
            nn.init.zeros_(layer.weight)
        self.video_encoder.patch_embed.requires_grad_(False)  # of the frames of videos

    @property
    def head(self) -> nn.Module:
        return self.image_decoder

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.side, self.side, RandomOrder(), RoundedCosineSizes())

    def check_condition(self, condition: Condition) -> None:
        check_prompts(condition, "NOVA")
        self.tokenize(cast(Sequence[str], condition))

    # --- text -------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """Of the language model; read when the first prompt is."""
        if isinstance(self.text_source, Words):
            return self.text_source
        if not isinstance(self.tokenizer_source, str):
            raise ValueError(f"NOVA has no text_encoder: give its folder or hub name, such as {_EXAMPLE}")
        return pretrained("AutoTokenizer", self.tokenizer_source, _EXAMPLE)

    @cached_property
    def language_model(self) -> Any:
        """What reads prompts, read when the first one is; it is no part of the module tree."""
        if not isinstance(self.text_source, str):
            raise ValueError(f"NOVA has no text_encoder: give its folder or hub name, such as {_EXAMPLE}")
        with torch.inference_mode(False):  # a training may come after
            return pretrained("AutoModel", self.text_source, _EXAMPLE).eval().requires_grad_(False)

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of the beginnings of prompts, `T` of each at most."""
        if isinstance(self.tokenizer, Words):
            rows = [self.tokenizer.read(prompt) for prompt in prompts]
        else:
            rows = self.tokenizer(list(prompts)).input_ids
        return [row[: self.text_length] for row in rows]

    def states(self, prompts: Sequence[str]) -> Tensor:
        """What the encoder of texts makes of prompts, `[B, T, Z]`; of an empty one, the padding alone."""
        padding = self.text_embed.weight[: self.text_length]
        if not any(prompts):  # which needs no tokenizer
            return padding.expand(len(prompts), -1, -1)
        rows = self.tokenize(prompts)
        ids = bring(pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True), self.device)
        lengths = bring(torch.tensor([len(row) for row in rows]), self.device)
        # Padding comes last, so nothing of a causal language model looks at it.
        known = F.pad(self.encode(ids), (0, 0, 0, self.text_length - ids.shape[1]))
        inside = torch.arange(self.text_length, device=self.device) < lengths[:, None]
        return torch.where(inside[..., None], known, padding)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """States `[B, t, Z]` of the tokens `[B, t]`."""
        if isinstance(self.text_source, Words):
            return F.one_hot(ids, self.text_embed.weight.shape[1]).to(self.dtype)
        reader = self.language_model.to(self.device, self.dtype)
        return cast(Tensor, reader(input_ids=ids).last_hidden_state)

    # --- backbone ---------------------------------------------------------------------------------------

    def condition(self, states: Tensor) -> Tensor:
        """What the first encoder makes of texts `[B, T, Z]`, `[B, M, w]`."""
        start = self.mask_embed.bos_token + self.video_pos_embed() + self.condition_positions
        x = torch.cat((self.text_embed(states), start.expand(len(states), -1, -1)), dim=1)
        for block in self.video_encoder.layers:
            x = block(x)
        return self.video_encoder.norm(x[:, states.shape[1] :])

    def backbone(self, tokens: Tensor, condition: Tensor, visible: Tensor, drawn: Tensor) -> Tensor:
        """Conditioning `z [g B, n, w]` of the tokens at `drawn [B, n]`, given those at `visible [B, m]`.

        Args:
            tokens: `[B, N, D]`; only visible ones are read.
            condition: `[g B, M, w]`.
        """
        M, g = condition.shape[1], len(condition) // len(tokens)
        blocks, places = self.image_encoder.layers, gather_tokens(self.image_positions, visible)
        seen = self.image_encoder.patch_embed(gather_tokens(tokens, visible)) + places
        x = torch.cat((condition, seen.repeat(g, 1, 1)), dim=1)
        half = len(blocks) // 2
        for block in blocks[:half]:
            x = block(x)
        x = self.fill(x, M, visible.repeat(g, 1))
        for block in blocks[half:-1]:
            x = block(x)
        q, k, v = blocks[-1].project(x)  # only drawn tokens are read from here on
        read = drawn.repeat(g, 1) + M
        return self.image_encoder.norm(blocks[-1].update(gather_tokens(x, read), gather_heads(q, read), k, v))

    def fill(self, x: Tensor, kept: int, visible: Tensor) -> Tensor:
        """`x [g B, M + m, w]` with all tokens behind the `M` that are kept, masked ones too: `[g B, M + N, w]`."""
        image = (self.mask_embed.mask_token + self.image_positions).to(x.dtype).expand(len(x), -1, -1)
        image = image.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x[:, kept:])
        return torch.cat((x[:, :kept], image), dim=1)

    # --- sampling ---------------------------------------------------------------------------------------

    def begin(self, condition: Sequence[str] | None, sampling: SamplingConfig, noise: NoiseSource) -> MARState:
        B, rows = noise.batch_size, []
        if condition is not None:
            rows.append(self.condition(self.states(condition)))
        if condition is None or sampling.branches_from(0) > 1:
            null = self.condition(self.states([""])).expand(B, -1, -1)
            rows += [null] * (sampling.branches_from(0) - len(rows))
        blank = rows[0].new_zeros(B, self.num_tokens, self.token_channels)
        return MARState.begin(blank, torch.cat(rows), sampling, noise, self.layout)

    def propose(self, state: MARState, stage: int) -> Proposal:
        visible, drawn = state.places(stage)
        guidance = state.sampling.guidance_at(stage)
        z = self.backbone(state.tokens, state.context[: guidance.branches * len(drawn)], visible, drawn)
        scale = guidance.at((stage + 1) / state.sampling.stages)
        denoise = self.image_decoder.denoiser(z, scale, state.sampling.guidance, self.process)
        return Proposal((drawn.shape[1], self.token_channels), denoise, (drawn, None), z)

    def accept(self, state: MARState, proposal: Proposal, tokens: Tensor) -> MARState:
        return state.accept(proposal, tokens)

    def finish(self, state: MARState) -> Tensor:
        tokens = state.tokens.unflatten(-1, (self.patch_size**2, -1)).mT.flatten(-2)
        return unpatchify(tokens, self.patch_size, *self.latent_shape[1:])

    def to_tokens(self, latents: Tensor) -> Tensor:
        """`[B, C, H, W] -> [B, N, p p C]`: the channels of a latent pixel lie together, as published."""
        tokens = patchify(latents, self.patch_size)
        return tokens.unflatten(-1, (-1, self.patch_size**2)).mT.flatten(-2)

    # --- training ---------------------------------------------------------------------------------------

    def losses(
        self,
        latents: Tensor,
        condition: Sequence[str] | None,
        generator: torch.Generator | None = None,
        draws: TrainingDraws | None = None,
    ) -> Losses:
        """As the contract says; `draws` replaces the generator."""
        tokens = self.to_tokens(latents)
        draws = draws or self.training_draws(len(tokens), tokens.device, generator)
        if condition is not None:
            self.check_condition(condition)
        prompts = [""] * len(tokens) if condition is None else condition
        states = torch.where(draws.dropped[:, None, None], self.states([""]), self.states(prompts))
        visible, masked = draws.places()
        z = self.backbone(tokens, self.condition(states), visible, masked)
        clean = gather_tokens(tokens, masked)
        timesteps, noise = draws.corruption
        alpha, sigma = self.tables[timesteps].unsqueeze(-2).unbind(-1)
        noisy = alpha * clean + sigma * noise
        out = self.image_decoder(noisy, self.image_decoder.time_cond_embed(timesteps, z))
        return draws.losses((out - self.process.target(clean, noise)).square().mean())

    def training_draws(
        self, batch_size: int, device: torch.device, generator: torch.Generator | None = None
    ) -> TrainingDraws:
        """Draws on the CPU (the number of masked tokens decides shapes), then moves to `device`."""
        B, N, R = batch_size, self.num_tokens, self.diffusion_batch_mul
        order = torch.rand(B, N, generator=generator).argsort(dim=1)
        m = max(1, N - round((1 - truncated_normal(*self.mask_ratio, generator)) * N))
        dropped = torch.rand(B, generator=generator) < (self.label_dropout if self.training else 0.0)
        if isinstance(self.process, RectifiedFlow):
            times = (TIMES * torch.randn(R, B, m, generator=generator).sigmoid()).long().clamp(max=TIMES - 1)
        else:
            times = torch.randint(TIMES, (R, B, m), generator=generator)
        noise = torch.randn(R, B, m, self.token_channels, generator=generator)
        return TrainingDraws(order.to(device), m, dropped.to(device), (times.to(device), noise.to(device)))


class PostNormBlock(Block):
    """Transformer block with its norms behind attention and MLP, before they are added."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attn.project(x)

    def update(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(q, k, v))
        return x + self.norm2(self.mlp(x))


class Encoder(nn.Module):
    """Patches, blocks and a norm, with the published names."""

    def __init__(self, depth: int, width: int, heads: int, mlp_ratio: float, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, patch_size, width)
        self.blocks = nn.ModuleList(PostNormBlock(width, heads, mlp_ratio, eps=1e-5) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def layers(self) -> list[PostNormBlock]:
        return cast(list[PostNormBlock], list(self.blocks))


class TextEmbed(nn.Module):
    """States of a text `[..., Z]` to `[..., w]`; `weight` is what stands behind a text, and is not trained."""

    weight: Tensor

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(_PADDING, text_width) * 0.02)
        self.proj = nn.Linear(text_width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(self.proj(states))


class MaskEmbed(nn.Module):
    """What stands for a masked token, and for a place where a condition is to come."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bos_token = nn.Parameter(torch.randn(1, width) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, width) * 0.02)


class FrameEmbed(nn.Module):
    """Which frame of a video it is, `[w]`: an image is the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self) -> Tensor:
        weight = self.norm.weight
        cos, sin = sinusoids(torch.zeros((), device=weight.device), FREQUENCIES).to(weight.dtype).chunk(2)
        return self.norm(self.time_proj(torch.cat((sin, cos))))


def sine_positions(side: int, width: int) -> Tensor:
    """Of the places of a square, `[1, side side, width]`: a quarter each of `sin` and `cos` of the column, then of the
    row, with `theta` 10000."""
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=-1)  # [side, w / 2]
    columns, rows = line.expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)[None].to(torch.get_default_dtype())


def _training_tables(process: Process) -> Tensor:
    """`alpha` and `sigma` at whole times, `[1000, 2]`."""
    nodes = process.nodes([process.at_unit_time(t / TIMES) for t in range(TIMES)])
    return torch.tensor((nodes.alphas, nodes.sigmas), dtype=torch.float64).T.float()


def _published(width: int, heads: int, image_size: int, **options: Any) -> NOVA:
    if image_size % _STRIDE:
        raise ValueError(f"image_size must be a multiple of {_STRIDE} pixels, got {image_size}")
    return NOVA(image_size // _STRIDE, width=width, heads=heads, head_width=width, **options)


def nova_0_3b(
    text_encoder: str | None = None, tokenizer: str | None = None, process: ProcessName = "flow", image_size: int = 1024
) -> NOVA:
    """NOVA-0.3B: 364 million parameters, whose texts Phi-2 reads; images of 1024 pixels have 4,096 tokens."""
    return _published(768, 12, image_size, text_encoder=text_encoder, tokenizer=tokenizer, process=process)


def nova_0_6b(
    text_encoder: str | None = None, tokenizer: str | None = None, process: ProcessName = "flow", image_size: int = 1024
) -> NOVA:
    """NOVA-0.6B: 646 million parameters; there are weights for 512 pixels, too."""
    return _published(1024, 16, image_size, text_encoder=text_encoder, tokenizer=tokenizer, process=process)


def nova_1_4b(
    text_encoder: str | None = None, tokenizer: str | None = None, process: ProcessName = "flow", image_size: int = 1024
) -> NOVA:
    """NOVA-1.4B: 1,450 million parameters."""
    return _published(1536, 16, image_size, text_encoder=text_encoder, tokenizer=tokenizer, process=process)
