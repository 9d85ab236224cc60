"""`disa-cache`, run as people run it: the same folder however often it was stopped and by however many processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disa_framework.cli.cache import cache
from disa_framework.cli.fit import fit
from disa_framework.data.encoding import encode
from disa_framework.data.image_folder import ImageFolder
from disa_framework.data.latents import Latents, LatentsFolder
from disa_framework.data.reading import Reading
from tests.models.tiny import TINY
from tests.tokenizers.tiny_autoencoder import tiny_autoencoder, write_images, write_weights

PROGRAM = str(Path(sys.executable).with_name("disa-cache"))
OPTIONS = [
    "--vae", "tiny.safetensors", "--vae.channels", "32", "--vae.multipliers", "[1, 1]", "--vae.blocks", "1",
    "--vae.latent_channels", "1", "--image_size", "32", "--num_workers", "0", "--trainer.accelerator", "cpu",
]  # fmt: skip
QUIET = ["--trainer.enable_progress_bar", "false"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 41 images, the autoencoder, and the latents of both, cached without interruption."""
    place = tmp_path_factory.mktemp("cache")
    write_weights(place / "tiny.safetensors")
    write_images(place / "images", 13)
    write_images(place / "images", 15, classes=("bee",))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cache(["images", "latents", *OPTIONS, *QUIET, "--batch_size", "2"])
    return place


def test_the_folder_holds_the_moments_of_every_image_and_of_its_mirror_image(place: Path) -> None:
    images, autoencoder = ImageFolder(place / "images", image_size=32), tiny_autoencoder()
    made = json.loads((place / "latents/latents.json").read_text())["identity"]
    assert made["classes"] == ["ant", "bee", "cat"] and made["num_images"] == len(images) == 41
    assert made["image_size"] == 32 and made["scale"] == autoencoder.scale and len(made["vae"]) == 64
    shards = [load_file(path) for path in sorted((place / "latents").glob("*.safetensors"))]
    assert [len(shard["labels"]) for shard in shards] == [2] * 20 + [1]
    assert torch.cat([shard["labels"] for shard in shards]).tolist() == images.labels
    pixels = torch.stack([images[i][0] for i in range(41)])
    want = torch.stack((autoencoder.moments(pixels), autoencoder.moments(pixels.flip(-1))), dim=1)
    torch.testing.assert_close(torch.cat([shard["moments"] for shard in shards]), want)


def test_two_processes_write_the_same_folder(place: Path) -> None:
    arguments = ["images", "two", *OPTIONS, "--batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run([PROGRAM, *arguments], cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "latents of 41 images in 3 classes: two" in done.stdout
    assert files(place / "two") == files(place / "latents")


def test_a_killed_run_goes_on_and_encodes_nothing_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["images", "killed", *OPTIONS, *QUIET, "--batch_size", "2"]
    process = subprocess.Popen([PROGRAM, *arguments], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = place / "killed"
    deadline = time.monotonic() + 120
    while not (folder / "000001.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 2 <= len(written) < 21
    whole = files(place / "latents")
    assert all((folder / name).read_bytes() == whole[name] for name in written)
    (folder / ".000020.safetensors.7.tmp").write_bytes(b"half a shard")
    with pytest.raises(ValueError, match="shards are missing"):
        Latents(folder)
    monkeypatch.chdir(place)
    cache(arguments)
    assert files(folder) == whole
    assert all((folder / name).stat().st_mtime_ns == when for name, when in written.items())


def test_other_settings_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    weights = load_file("tiny.safetensors")
    torch.save({**weights, "quant_conv.bias": weights["quant_conv.bias"] + 1}, tmp_path / "other.ckpt")
    more = write_images(tmp_path / "images", 13)
    for images, options, differing in [
        ("images", ["--image_size", "10"], "image_size"),
        ("images", ["--batch_size", "3"], "shard_size"),
        ("images", ["--dtype", "float16"], "dtype"),
        ("images", ["--vae.scale", "1"], "scale, vae"),
        ("images", ["--vae.tiling", "true"], "vae"),
        ("images", ["--vae", str(tmp_path / "other.ckpt")], "vae"),
        (str(more), [], "images_sha256, num_images"),
    ]:
        with pytest.raises(ValueError, match=rf"latents made otherwise \({differing} differ"):
            cache([images, "latents", *OPTIONS, *QUIET, "--batch_size", "2", *options])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_latents_are_made_from_python(place: Path, tmp_path: Path) -> None:
    images, reading = ImageFolder(place / "images", image_size=32), Reading(2, 0, {"accelerator": "cpu"})
    folder = encode(images, tiny_autoencoder(), tmp_path / "new", "float32", reading)
    assert folder is not None and folder.finished() == LatentsFolder(place / "latents").finished()
    assert folder.identity() == LatentsFolder(place / "latents").identity()


def test_a_rank_in_the_environment_does_not_silence_a_process_that_is_alone(place: Path) -> None:
    arguments = ["images", "alone", *OPTIONS, *QUIET, "--batch_size", "41"]
    ranked = {**os.environ, "RANK": "1"}
    done = subprocess.run([PROGRAM, *arguments], cwd=place, env=ranked, capture_output=True, text=True, check=True)
    assert "latents of 41 images in 3 classes: alone" in done.stdout


def test_half_precision_is_stored_in_half_the_space(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    cache(["images", "half", *OPTIONS, *QUIET, "--batch_size", "41", "--dtype", "float16"])
    (moments,) = [load_file(path)["moments"] for path in (place / "half").glob("*.safetensors")]
    whole = torch.cat([load_file(path)["moments"] for path in sorted((place / "latents").glob("*.safetensors"))])
    assert moments.dtype == torch.float16
    torch.testing.assert_close(moments.float(), whole, rtol=1e-3, atol=1e-3)


def test_a_model_is_trained_on_the_folder(place: Path, tmp_path: Path) -> None:
    model = {"class_path": "disa_framework.models.MAR", "init_args": {**TINY, "latent_size": 16}}
    data = {"class_path": "disa_framework.data.LatentsData", "init_args": {"folder": str(place / "latents")}}
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({"model": model, "data": data}))
    fit([
        "--config", str(config), "--data.batch_size", "8", "--data.validation", "0.1", "--trainer.max_steps", "3",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false",
        *QUIET,
    ])  # fmt: skip
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "new"], "give the weights of the autoencoder with --vae"),
        (["images", "new", *OPTIONS, "--vae.weights=none.ckpt"], "no checkpoint at none.ckpt"),
        (["images", "new", *OPTIONS, "--vae.channels", "64"], "does not fit the AutoencoderKL of the configuration"),
        (["nowhere", "new", *OPTIONS], "no folder at nowhere"),
        (["images", "new", *OPTIONS, "--batch_size", "0"], "batch_size must be at least 1"),
        (["images", "new", *OPTIONS, "--image_size", "9"], "image_size must be a multiple of 2 .* got 9"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(
    arguments: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises((ValueError, OSError), match=message):
        cache([*arguments, *QUIET])
    assert not (place / "new").exists()
