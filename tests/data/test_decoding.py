"""Image files are found, read and cropped as published training and evaluation saw them."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disa_framework.data.decoding import any_in_color, center_crop, find_images, read_pixels
from disa_framework.data.indexed import DamagedFileError
from disa_framework.metrics.images import from_uint8, to_uint8


def test_a_crop_of_an_images_own_size_is_the_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert np.array_equal(np.array(center_crop(Image.fromarray(pixels), 6)), pixels)


def test_the_middle_is_what_is_kept() -> None:
    pixels = np.zeros((6, 12, 3), dtype=np.uint8)
    pixels[:, 3:9] = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    for image in (pixels, pixels.swapaxes(0, 1)):
        middle = image[:, 3:9] if image.shape[1] == 12 else image[3:9]
        assert np.array_equal(np.array(center_crop(Image.fromarray(image), 6)), middle)


def test_large_images_are_halved_by_averages() -> None:
    pixels = np.random.default_rng(0).integers(0, 64, (16, 16, 3)).astype(np.uint8) * 4
    means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    got = np.array(center_crop(Image.fromarray(pixels), 4)).astype(float)
    assert abs(got - means.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))).max() <= 1  # rounded twice


@pytest.mark.parametrize("shape", [(7, 5), (5, 23), (3, 3), (64, 9)], ids=str)
def test_every_image_gets_the_size(shape: tuple[int, int]) -> None:
    assert center_crop(Image.new("RGB", shape), 4).size == (4, 4)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb_or_stays_gray(mode: str, tmp_path: Path) -> None:
    file = str(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    else:
        white = Image.new("RGB" if mode == "CMYK" else "RGBA", (8, 8), (255,) * (3 if mode == "CMYK" else 4))
        image = white.convert(mode)
    image.save(file)
    gray = mode in ("L", "LA", "1", "I;16")
    assert any_in_color([file]) == (not gray)
    for in_color in (True, False):
        pixels = read_pixels(file, 4, in_color)
        assert pixels.shape == (1 if gray and not in_color else 3, 4, 4) and pixels.dtype == torch.uint8
        assert (pixels > 252).all()


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_sixteen_bits_keep_their_upper_eight(suffix: str, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    if suffix == "png":
        Image.fromarray(deep).save(tmp_path / "x.png")
    else:  # Pillow tells a file by its content
        Image.fromarray(deep.astype(np.int32)).save(tmp_path / "x.bmp", "tiff")
    file = str(next(tmp_path.iterdir()))
    assert torch.equal(read_pixels(file, in_color=False)[0], torch.from_numpy((deep >> 8).astype(np.uint8)))
    assert len(read_pixels(file, 16).unique()) == 256


def test_pixels_that_are_no_levels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.png", "tiff")
    with pytest.raises(DamagedFileError, match=r"x\.png .* floating-point"):
        read_pixels(str(tmp_path / "x.png"))


@pytest.mark.parametrize("levels", [(0, 255), (0, 2**31 - 1), (-5, 1000)], ids=str)
def test_levels_of_32_bits_that_are_not_of_16_are_refused(levels: tuple[int, int], tmp_path: Path) -> None:
    Image.fromarray(np.array([levels, levels], np.int32)).save(tmp_path / "x.png", "tiff")
    with pytest.raises(DamagedFileError, match=rf"x\.png .* its levels are {levels[0]} to {levels[1]} in 32 bits"):
        read_pixels(str(tmp_path / "x.png"))


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    for place in ("a/deep", "b"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "x.PNG")
    for link, target in {"a/deep/up": "../..", "a/self": ".", "a/b": "../b", "b/a": "../a"}.items():
        (tmp_path / link).symlink_to(target)
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = find_images(tmp_path)
    assert len({Path(file).name for file in found}) == 2 and len(found) == 3
    with pytest.raises(DamagedFileError, match=r"loop\.png is damaged"):
        read_pixels(str(tmp_path / "loop.png"))


def test_one_file_in_color_is_found_among_gray_and_damaged_ones(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no image")
    assert not any_in_color(find_images(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "d.jpg")
    assert any_in_color(find_images(tmp_path))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_a_damaged_image_is_named_in_one_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.new("RGB", (40, 40)).save(file)
    file.write_bytes({"text": b"hello", "truncated": file.read_bytes()[:60], "empty": b""}[damage])
    message = rf"^{re.escape(str(file))} is damaged or not an image: [^\n]+$"
    with pytest.raises(DamagedFileError, match=message) as error:
        read_pixels(str(file))
    # How a loader process hands it on.
    text = "".join(traceback.format_exception(error.value))
    again = DamagedFileError(f"Caught DamagedFileError in DataLoader worker process 0.\nOriginal {text}")
    assert str(again) == str(error.value)


def test_pixels_are_the_inverse_of_rounding_to_bytes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every)[[0, 255]].tolist() == [-1.0, 1.0]
