"""eMIGM, a masked generator with MAR's network (You et al., arXiv 2503.07197): one vector stands for a masked token and
for no class, and most tokens come at the last stages.

Letter: `C` latent channels.
"""

from __future__ import annotations

import math

import torch

from disa_framework.models.base import TokenLayout
from disa_framework.models.mar import MAR, MARState, published_sizes
from disa_framework.sampling.order import RandomOrder
from disa_framework.sampling.stage_sizes import ExponentialSizes
from disa_framework.values import check_numbers

_FEWEST = 2  # tokens that are masked in training
_LEAST = 1e-3  # mask time


class EMIGM(MAR):
    """Class-conditional masked autoregressive generator. Its stages have `ExponentialSizes`; those of `BinomialSizes`
    are drawn at random, as published. `SinglestepDPMSolverPP` draws its tokens.

    Args:
        latent_size: side of the square latents, in latent pixels.
        latent_channels: `C`.
        patch_size: side of a token, in latent pixels.
        num_classes: labels are 0 … num_classes - 1.
        encoder_width, encoder_depth, encoder_heads: the encoder's transformer.
        decoder_width, decoder_depth, decoder_heads: the decoder's transformer, of the same width.
        head_depth, head_width: the diffusion head.
        buffer_size: slots in front of the tokens that carry the class embedding.
        mlp_ratio: hidden over outer width of the transformers' MLPs.
        norm_eps: of the transformers' LayerNorms.
        attn_dropout, proj_dropout: in training.
        label_dropout: share of training samples without a class, for guidance.
        mask_time_min: least mask time in training, where `1 - exp(-5 t)` of the tokens are masked.
        diffusion_batch_mul: how many times and noises a masked token is trained at.
        position_std: standard deviation of the initial position tables.
    """

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
        mask_time_min: float = 0.2,
        diffusion_batch_mul: int = 4,
        position_std: float = 0.02,
    ) -> None:
        super().__init__(
            latent_size, latent_channels, patch_size, num_classes, encoder_width, encoder_depth, encoder_heads,
            decoder_width, decoder_depth, decoder_heads, head_depth, head_width, buffer_size, mlp_ratio, norm_eps,
            attn_dropout, proj_dropout, label_dropout, diffusion_batch_mul=diffusion_batch_mul,
            position_std=position_std,
        )  # fmt: skip
        check_numbers(EMIGM.__init__, locals())
        if encoder_width != decoder_width:
            raise ValueError(
                f"the mask is in encoder and decoder, whose widths must be equal: got {encoder_width}, {decoder_width}"
            )
        if mask_time_min > 1:
            raise ValueError(f"mask_time_min must lie in [0, 1], got {mask_time_min}")
        self.mask_time_min = mask_time_min
        self.mask_token = self.fake_latent  # one parameter, which files have under both names

    @property
    def layout(self) -> TokenLayout:
        side = math.isqrt(self.num_tokens)
        return TokenLayout(side, side, RandomOrder(), ExponentialSizes())

    def progress(self, state: MARState, stage: int) -> float:
        """The share that is there after the stage, all of it at the last."""
        return state.ends[stage] / state.order.shape[1]

    def count_masked(self, num_tokens: int, generator: torch.Generator | None) -> int:
        """Each token is masked with a probability that is drawn for the batch."""
        while True:
            t = max(float(torch.rand((), generator=generator)), self.mask_time_min)
            share = masked_share((1 - _LEAST) * t + _LEAST)
            masked = int((torch.rand(num_tokens, generator=generator) < share).sum())
            if masked >= min(_FEWEST, num_tokens):
                return masked


def masked_share(t: float) -> float:
    """Of the tokens at mask time `t` in training (arXiv 2503.07197, "exp")."""
    return -math.expm1(-5 * t)


def _published(size: tuple[int, int, int], head: tuple[int, int], resolution: int) -> EMIGM:
    """Of a width, depth and heads; at 512 pixels latents are those of an autoencoder with 32 channels."""
    return EMIGM(latent_channels=16 if resolution == 256 else 32, **published_sizes(*size, *head))


XSMALL, SMALL, BASE, LARGE, HUGE = (448, 10, 8), (512, 12, 8), (768, 12, 12), (1024, 16, 16), (1280, 20, 16)


def emigm_xsmall() -> EMIGM:
    """eMIGM-XS: 69 million parameters, 256x256 ImageNet."""
    return _published(XSMALL, (3, 1024), 256)


def emigm_small() -> EMIGM:
    """eMIGM-S: 97 million parameters."""
    return _published(SMALL, (3, 1024), 256)


def emigm_base() -> EMIGM:
    """eMIGM-B: 208 million parameters."""
    return _published(BASE, (6, 1024), 256)


def emigm_large() -> EMIGM:
    """eMIGM-L: 478 million parameters."""
    return _published(LARGE, (8, 1280), 256)


def emigm_huge() -> EMIGM:
    """eMIGM-H: 942 million parameters."""
    return _published(HUGE, (12, 1536), 256)


def emigm_xsmall_512() -> EMIGM:
    """eMIGM-XS at 512x512: 105 million parameters."""
    return _published(XSMALL, (6, 1280), 512)


def emigm_small_512() -> EMIGM:
    """eMIGM-S at 512x512: 132 million parameters."""
    return _published(SMALL, (6, 1280), 512)


def emigm_base_512() -> EMIGM:
    """eMIGM-B at 512x512: 244 million parameters."""
    return _published(BASE, (8, 1280), 512)


def emigm_large_512() -> EMIGM:
    """eMIGM-L at 512x512: 478 million parameters."""
    return _published(LARGE, (8, 1280), 512)
