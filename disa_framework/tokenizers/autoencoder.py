"""The KL autoencoder that the published systems share (KL-16), on `diffusers`' modules.

Latent diffusion's autoencoder (Rombach et al., arXiv 2112.10752) as MAR published it (arXiv 2406.11838).

Letters: `B` images, `c` pixel channels, `h`, `w` pixels, `C` latent channels, `H`, `W` latent places, `L` levels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from disa_framework.hub.checkpoint import apply_weights, read_checkpoint
from disa_framework.tokenizers.base import Frozen

KL16_SCALE = 0.2325  # makes the latents of ImageNet about as wide as a standard normal

_GROUPS = 32
_RESOLUTION = 256  # of the published training images: the size of a tile
_ATTENTION_LEVEL = 4  # which has 16 x 16 places at that resolution


class Autoencoder(Frozen):
    """Images `[B, 3, h, w]` to latents `[B, C, h / 2^(L-1), w / 2^(L-1)]` and back; by default the published KL-16.

    Args:
        weights: the published `kl16.ckpt`, or any file with the same names; random without one.
        channels: of the first level.
        multipliers: channels of each of the `L` levels, as multiples of `channels`.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        latent_channels: `C`.
        scale: latents are the posterior's times this.
        tiling: encode and decode what is larger than 256 x 256 in overlapping tiles: less memory, other pixels.
        slicing: encode and decode image by image: less memory, more time.

    Raises:
        ValueError: values out of range; a file that does not fit, naming the keys and shapes that differ;
            `diffusers` is not installed.
        FileNotFoundError: no such file.
    """

    def __init__(
        self,
        weights: str | None = None,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 16,
        scale: float = KL16_SCALE,
        tiling: bool = False,
        slicing: bool = False,
    ) -> None:
        if channels < 1 or channels % _GROUPS:
            raise ValueError(
                f"channels must be a multiple of {_GROUPS}, the groups they are normalized in; got {channels}"
            )
        if not multipliers or min(*multipliers, blocks, latent_channels) < 1 or not scale > 0:
            raise ValueError(
                "multipliers, blocks, latent_channels and scale must be positive, got "
                f"{list(multipliers)}, {blocks}, {latent_channels} and {scale}"
            )
        network = _network([channels * m for m in multipliers], blocks, latent_channels)
        network.use_tiling, network.use_slicing = tiling, slicing
        if weights is not None:
            checkpoint = read_checkpoint(weights)
            apply_weights(network, checkpoint.autoencoder or checkpoint.weights, weights)
        super().__init__(network)  # whose state dict reads and writes the published names
        self.latent_channels = latent_channels
        self.factor = 2 ** (len(multipliers) - 1)
        self.scale, self.tiling = scale, tiling

    def encode(self, images: Tensor) -> Tensor:
        """In training, a sample of the posterior, drawn from the global generator; in evaluation, its mean."""
        moments = self.moments(images)
        noise = torch.randn_like(moments[:, : self.latent_channels]) if self.training else None
        return sample_posterior(moments, noise, self.scale)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the posterior, unscaled: `[B, 2C, H, W]`.

        They are computed in the precision of the weights, also where autocast is on, as published.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(
                f"images must be [B, 3, h, w] with h and w multiples of {self.factor}, got {list(images.shape)}; "
                "training on cached latents takes no tokenizer"
            )
        with torch.autocast(images.device.type, enabled=False):
            (posterior,) = self.network.encode(images.to(self.network.dtype), return_dict=False)
        return posterior.parameters

    def check(self, latent_shape: Sequence[int]) -> None:
        if len(latent_shape) != 3 or latent_shape[0] != self.latent_channels:
            raise ValueError(
                f"the autoencoder is for latents [{self.latent_channels}, H, W], the model draws {list(latent_shape)}: "
                "give the model the channels of its autoencoder"
            )

    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents must be [B, {self.latent_channels}, H, W], got {list(latents.shape)}")
        (images,) = self.network.decode(latents / self.scale, return_dict=False)
        return images


def posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, `[..., C, H, W]` each, of the moments `[..., 2C, H, W]`."""
    mean, log_variance = moments.chunk(2, dim=-3)
    return mean, log_variance.clamp(-30.0, 20.0)


def sample_posterior(moments: Tensor, noise: Tensor | None, scale: float = KL16_SCALE) -> Tensor:
    """Latents `scale * (mean + std * noise)`, `[..., C, H, W]`; of the mean alone without noise."""
    mean, log_variance = posterior(moments)
    return scale * (mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise)


def _network(widths: Sequence[int], blocks: int, latent_channels: int) -> Any:
    """`diffusers`' network with these channels at its levels."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError("the autoencoder needs diffusers: pip install 'disa-framework[vae]'") from error
    levels = range(len(widths))
    network: Any = AutoencoderKL(
        down_block_types=["AttnDownEncoderBlock2D" if i == _ATTENTION_LEVEL else "DownEncoderBlock2D" for i in levels],
        up_block_types=["UpDecoderBlock2D" for _ in levels],
        block_out_channels=list(widths),
        layers_per_block=blocks,
        latent_channels=latent_channels,
        norm_num_groups=_GROUPS,
        sample_size=_RESOLUTION,
    )
    names = {name: published_name(name, len(widths)) for name in network.state_dict()}
    network.register_state_dict_post_hook(partial(_write_published, names))
    network.register_load_state_dict_pre_hook(partial(_read_published, names))
    return network


_PUBLISHED = (  # what diffusers calls the parts, and what the published file calls them
    (r"down_blocks\.", "down."),
    (r"up_blocks\.", "up."),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"(down|up)samplers\.0", r"\1sample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"\.to_([qkv])\.", r".\1."),
)


def published_name(name: str, num_levels: int) -> str:
    """The published name of a parameter of `diffusers`' network with that many levels."""
    for ours, theirs in _PUBLISHED:
        name = re.sub(ours, theirs, name)
    # The decoder runs from the last level to the first; the published file counts levels, diffusers counts steps.
    return re.sub(r"(?<=\.up\.)\d+", lambda step: str(num_levels - 1 - int(step[0])), name)


def _write_published(names: dict[str, str], network: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    """Renames a state dict; the projections of attention are published as 1 x 1 convolutions."""
    for name, published in names.items():
        weight = state.pop(name)
        state[published] = weight[:, :, None, None] if weight.ndim == 2 else weight


def _read_published(names: dict[str, str], network: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    for name, published in names.items():
        if published in state:
            weight = state.pop(published)
            state[name] = weight.flatten(1) if ".attn" in published and weight.ndim == 4 else weight
