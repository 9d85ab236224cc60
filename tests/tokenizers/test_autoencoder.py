"""The autoencoder has the published layout, reads published files, and stays as it was loaded.

Its numbers are checked against recorded ones in tests/golden.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from disa_framework.module import ARDiffusionModule
from disa_framework.tokenizers import Autoencoder
from disa_framework.tokenizers.autoencoder import posterior, sample_posterior
from tests.models.tiny import tiny_mar
from tests.tokenizers.tiny_autoencoder import TINY, tiny_autoencoder

MANIFEST = Path(__file__).parents[1] / "golden/data/manifests/vae_kl16.json"


def images(size: int = 8, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- layout and files -------------------------------------------------------------------------------------


def test_the_defaults_have_exactly_the_published_keys_and_shapes() -> None:
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        network = Autoencoder().network
    assert {name: list(t.shape) for name, t in network.state_dict().items()} == manifest["keys"]
    assert sum(p.numel() for p in network.parameters()) == manifest["num_parameters"]


@pytest.mark.parametrize("name", ["kl16.ckpt", "kl16.safetensors", "harmon.pth"])
def test_weights_load_from_files_with_the_published_names(name: str, tmp_path: Path) -> None:
    written, path = tiny_autoencoder(), tmp_path / name
    state = written.network.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:  # Harmon's file may hold an autoencoder beside the model
        inside = {"mar.fake_latent": torch.zeros(1), **{f"vae.{key}": t for key, t in state.items()}}
        torch.save({"model": state, "epoch": 3} if name == "kl16.ckpt" else inside, path)
    read = Autoencoder(str(path), **TINY)
    moments = written.moments(images())
    assert torch.equal(read.moments(images()), moments)
    latents = sample_posterior(moments, None)
    assert torch.equal(read.decode(latents), written.decode(latents))


def test_a_file_that_does_not_fit_is_described_in_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    state = tiny_autoencoder().network.state_dict()
    state["encoder.conv_in.weight"] = torch.zeros(64, 3, 3, 3)
    state["extra.weight"] = state.pop("decoder.mid.attn_1.q.weight")
    save_file(state, path)
    with pytest.raises(ValueError, match=r"lacks decoder\.mid\.attn_1\.q\.weight .* has extra\.weight .* shapes"):
        Autoencoder(str(path), **TINY)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        Autoencoder(str(tmp_path / "none.ckpt"), **TINY)


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'disa-framework\[vae\]'"):
        tiny_autoencoder()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 48}, "multiple of 32, .* got 48"),
        ({"channels": 0}, "multiple of 32, .* got 0"),
        ({"multipliers": ()}, r"must be positive, got \[\]"),
        ({"multipliers": (1, 0)}, r"must be positive, got \[1, 0\]"),
        ({"blocks": 0}, "must be positive"),
        ({"latent_channels": 0}, "must be positive"),
        ({"scale": float("nan")}, "must be positive.* nan"),
    ],
    ids=str,
)
def test_an_architecture_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(**{**TINY, **options})


# --- encoding and decoding --------------------------------------------------------------------------------


def test_encode_draws_in_training_and_gives_the_mean_in_evaluation() -> None:
    autoencoder = tiny_autoencoder(latent_channels=2)
    moments = autoencoder.moments(images())
    mean, log_variance = posterior(moments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        noise = torch.randn_like(mean)
        torch.manual_seed(5)
        drawn = autoencoder.encode(images())
    assert torch.equal(drawn, 0.2325 * (mean + (0.5 * log_variance).exp() * noise))
    assert torch.equal(autoencoder.eval().encode(images()), 0.2325 * mean)


def test_the_scale_is_that_of_latents_alone() -> None:
    small, large = tiny_autoencoder(scale=0.25).eval(), tiny_autoencoder(scale=1.0).eval()
    latents = large.encode(images())
    assert torch.equal(small.encode(images()), 0.25 * latents)
    assert torch.equal(small.decode(0.25 * latents), large.decode(latents))


def test_posterior_samples_have_its_mean_and_deviation() -> None:
    moments = torch.tensor([1.5, -2.0, 2 * torch.tensor(0.3).log(), -100.0]).view(4, 1, 1)
    noise = torch.randn(20000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    samples = sample_posterior(moments, noise, scale=2.0).squeeze()
    assert samples.mean(0).tolist() == pytest.approx([3.0, -4.0], abs=0.02)
    assert samples.std(0).tolist() == pytest.approx([0.6, 2 * torch.tensor(-15.0).exp().item()], rel=0.02, abs=1e-5)


def test_slices_and_tiles_give_the_same_shapes_and_slices_the_same_pixels() -> None:
    whole, sliced, tiled = tiny_autoencoder(), tiny_autoencoder(slicing=True), tiny_autoencoder(tiling=True)
    moments = whole.moments(images())
    torch.testing.assert_close(sliced.moments(images()), moments)
    latents = sample_posterior(moments, None)
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents))
    # 256 pixels and less are one tile.
    assert torch.equal(tiled.moments(images()), moments)
    wide = torch.zeros(1, 3, 8, 264)
    assert tiled.moments(wide).shape == whole.moments(wide).shape
    assert tiled.decode(torch.zeros(1, 1, 4, 132)).shape == (1, 3, 8, 264)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 9, 8), (2, 3, 8, 7)], ids=str)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, h, w\] with h and w multiples of 2, got"):
        tiny_autoencoder().encode(torch.zeros(shape))


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents must be \[B, 1, H, W\], got \[2, 4, 4, 4\]"):
        tiny_autoencoder().decode(torch.zeros(2, 4, 4, 4))


# --- frozen -----------------------------------------------------------------------------------------------


def test_a_module_neither_keeps_nor_trains_the_autoencoder() -> None:
    autoencoder = tiny_autoencoder()
    module = ARDiffusionModule(tiny_mar(), tokenizer=autoencoder).train()
    assert module.tokenizer.training and not autoencoder.network.training
    assert all(name.startswith("model.") for name in module.state_dict())
    assert not any(True for _ in autoencoder.parameters())
    assert not any(p.requires_grad for p in autoencoder.network.parameters())
    latents = sample_posterior(autoencoder.moments(images()), None).requires_grad_()
    autoencoder.decode(latents).square().sum().backward()  # a schedule may still be learned through it
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def test_the_autoencoder_moves_with_the_module_and_is_copied_with_it() -> None:
    module = ARDiffusionModule(tiny_mar(), tokenizer=tiny_autoencoder().eval())
    moved = copy.deepcopy(module).to(torch.float64)
    latents = moved.tokenizer.encode(images())
    assert latents.dtype == torch.float64
    torch.testing.assert_close(latents.float(), module.tokenizer.encode(images()))
    assert isinstance(moved.tokenizer, Autoencoder)
    assert next(iter(moved.tokenizer.network.state_dict())) == "encoder.conv_in.weight"


def test_autocast_does_not_reach_the_encoder() -> None:
    autoencoder = tiny_autoencoder().eval()
    want = autoencoder.encode(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(autoencoder.encode(images()), want)
