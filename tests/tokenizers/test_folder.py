"""The autoencoder of Stable Diffusion XL, in the layout of `diffusers`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disa_framework.tokenizers import KLAutoencoder

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small one: 2 pixels a place, 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        ).save_pretrained(tmp_path / "vae")  # fmt: skip
    return str(tmp_path / "vae")


def test_latents_are_the_posteriors_times_the_scale(folder: str) -> None:
    tokenizer, images = KLAutoencoder(folder).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    latents, posterior = tokenizer.encode(images), tokenizer.network.encode(images).latent_dist
    torch.testing.assert_close(latents, posterior.mean * 0.13025)
    torch.testing.assert_close(tokenizer.decode(latents), tokenizer.network.decode(posterior.mean).sample)
    drawn = (tokenizer.train().encode(images) / 0.13025 - posterior.mean) / posterior.std
    assert abs(drawn.std().item() - 1) < 0.1


def test_what_does_not_fit_is_refused(folder: str, tmp_path: Path) -> None:
    KLAutoencoder(folder).check((4, 8, 8))
    with pytest.raises(ValueError, match=r"for latents \[4, H, W\]"):
        KLAutoencoder(folder).check((16, 4, 4))
    with pytest.raises(ValueError, match="no folder of diffusers with AutoencoderKL"):
        KLAutoencoder(str(tmp_path))
