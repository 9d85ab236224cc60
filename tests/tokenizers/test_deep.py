"""DC-AE, in the layout of `diffusers`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disa_framework.cli.predict import predict
from disa_framework.models import EMIGM
from disa_framework.resuming import digest_of
from disa_framework.tokenizers import DeepAutoencoder

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small one: 4 pixels a place, 8 channels."""
    blocks = {
        "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
        "encoder_block_types": ("ResBlock",) * 3, "decoder_block_types": ("ResBlock",) * 3,
        "encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ()),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderDC(latent_channels=8, attention_head_dim=8, **blocks).save_pretrained(tmp_path / "dc")
    return str(tmp_path / "dc")


def test_latents_are_the_encoders_times_the_scale(folder: str) -> None:
    tokenizer, images = DeepAutoencoder(folder), torch.rand(2, 3, 16, 16) * 2 - 1
    latents = tokenizer.encode(images)
    assert latents.shape == (2, 8, 4, 4) and not latents.requires_grad
    torch.testing.assert_close(DeepAutoencoder(folder, scale=1.0).encode(images) * 0.3189, latents)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, tokenizer.network.decode(latents / 0.3189).sample)


def test_it_is_frozen_and_tells_itself_from_others(folder: str) -> None:
    tokenizer = DeepAutoencoder(folder).train()
    assert not [*tokenizer.parameters()] and not tokenizer.network.training
    assert tokenizer.bfloat16().network.dtype == torch.bfloat16
    assert digest_of(DeepAutoencoder(folder)) != digest_of(DeepAutoencoder(folder, scale=0.5))


def test_what_does_not_fit_is_refused(folder: str, tmp_path: Path) -> None:
    DeepAutoencoder(folder).check((8, 4, 4))
    with pytest.raises(ValueError, match=r"for latents \[8, H, W\]"):
        DeepAutoencoder(folder).check((16, 4, 4))
    with pytest.raises(ValueError, match="no folder of diffusers"):
        DeepAutoencoder(str(tmp_path))
    with pytest.raises(ValueError, match="--vae"):
        DeepAutoencoder()


def test_images_are_drawn_with_it(folder: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pth"
    options = [
        "--config", "emigm/base-512", "--model", "disa_framework.models.EMIGM", "--model.latent_size", "4",
        "--model.latent_channels", "8", "--model.num_classes", "3", "--model.encoder_width", "16",
        "--model.encoder_depth", "1", "--model.encoder_heads", "2", "--model.decoder_width", "16",
        "--model.decoder_depth", "1", "--model.decoder_heads", "2", "--model.head_width", "16",
        "--model.head_depth", "1", "--model.buffer_size", "2",
    ]  # fmt: skip
    sizes = dict(zip([o.removeprefix("--model.") for o in options[4::2]], map(int, options[5::2]), strict=True))
    torch.save(EMIGM(**sizes).state_dict(), checkpoint)
    drawn = predict(
        [*options, "--ckpt_path", str(checkpoint), "--vae", folder, "--num_images", "2", "--trainer.accelerator", "cpu",
         "--output", str(tmp_path / "drawn")]
    )  # fmt: skip
    assert len([*drawn.path.glob("*.png")]) == 2
