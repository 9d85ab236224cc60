"""Images in a folder of class folders, as ImageNet is kept.

Letters: `B` images in a batch, `h`, `w` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa_framework.data.indexed import DamagedFileError, IndexedData, Item, Items

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ImageFolder(Items):
    """The images of a folder of class folders; labels count the class folders, sorted by name, from 0.

    Args:
        folder: holds one folder a class, with images in it or in folders below it.
        image_size: `h` and `w` after `center_crop`.
        seed: of the random mirroring.

    Raises:
        ValueError: no classes, a class without images, or a size below 1.
        FileNotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path, image_size: int, seed: int = 0) -> None:
        root = Path(folder)
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if not root.is_dir():
            raise FileNotFoundError(f"no folder at {root}: give one that holds a folder of images for each class")
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not classes:
            raise ValueError(f"{root} holds no class folders: expected one folder of images for each class")
        super().__init__(classes, seed)
        self.image_size = image_size
        files = [list(_images(root / name)) for name in classes]
        if empty := [name for name, found in zip(classes, files, strict=True) if not found]:
            raise ValueError(f"no images ({', '.join(_SUFFIXES)}) in the class folders {', '.join(empty)} of {root}")
        self.files = [file for found in files for file in found]
        self.labels = [label for label, found in enumerate(files) for _ in found]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, draws: np.random.Generator | None) -> Item:
        """An image, float32 `[3, h, w]` in [-1, 1]; with draws it is mirrored with probability one half."""
        pixels = self.pixels(index)
        if draws is not None and draws.random() < 0.5:
            pixels = pixels.flip(-1)
        return from_uint8(pixels), self.labels[index]

    def pixels(self, index: int) -> Tensor:
        """An image, cropped, uint8 `[3, h, w]`.

        Raises:
            DamagedFileError: naming the file.
        """
        file = self.files[index]
        try:
            with Image.open(file) as image:
                # A palette may have transparent colors, which Pillow loses with a warning on the straight way.
                colors = image.convert("RGBA") if image.mode == "P" else image
                cropped = center_crop(colors.convert("RGB"), self.image_size)
        except Exception as error:  # damage makes Pillow raise all kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedFileError(f"{file} is damaged or not an image: {reason}") from error
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


class ImageFolderData(IndexedData):
    """Images of a folder of class folders, with batches `(images, labels)`.

    Images are float32 `[B, 3, h, w]` in [-1, 1], cropped by `center_crop` and in training mirrored at random;
    labels are int64 `[B]`.

    Args:
        folder: holds one folder of images a class.
        image_size: `h` and `w`.
        batch_size: images per batch and process; the last, smaller batch of a training epoch is dropped.
        validation: another such folder, or the share of the images that is held out.
        num_workers: loader processes; 0 loads in the main one.
        seed: of the order and the mirroring.

    Raises:
        ValueError: a value out of its range; a folder without images.
        FileNotFoundError: no such folder.
    """

    def __init__(
        self,
        folder: str,
        image_size: int = 256,
        batch_size: int = 64,
        validation: float | str = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        items = ImageFolder(folder, image_size, seed)
        held_out = ImageFolder(validation, image_size) if isinstance(validation, str) else validation
        super().__init__(items, held_out, batch_size, num_workers, seed)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The square of `size` pixels in the middle of an image, whose shorter side becomes `size`.

    As ADM does it (Dhariwal and Nichol, arXiv 2105.05233): halved by boxes while the shorter side is at least
    twice the size, then resized bicubically, which keeps large images from aliasing.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def from_uint8(pixels: Tensor) -> Tensor:
    """Bytes as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _images(folder: Path) -> Iterator[str]:
    """Images in a folder and below it, sorted folder by folder."""
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        yield from (os.path.join(parent, name) for name in sorted(names) if name.lower().endswith(_SUFFIXES))
