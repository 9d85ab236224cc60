"""Images in a folder of class folders, as ImageNet is kept.

Letters: `B` images in a batch, `h`, `w` pixels.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from torch import Tensor

from disa_framework.data.decoding import SUFFIXES, find_images, is_hidden, read_pixels
from disa_framework.data.indexed import IndexedData, Item, Items
from disa_framework.metrics.images import from_uint8


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
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        if not classes:
            raise ValueError(f"{root} holds no class folders: expected one folder of images for each class")
        _warn_of_numbers(classes)
        super().__init__(classes, seed)
        self.root, self.image_size = root, image_size
        files = [find_images(root / name) for name in classes]
        if empty := [name for name, found in zip(classes, files, strict=True) if not found]:
            raise ValueError(f"no images ({', '.join(SUFFIXES)}) in the class folders {', '.join(empty)} of {root}")
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
        return read_pixels(self.files[index], self.image_size)


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


def _warn_of_numbers(classes: list[str]) -> None:
    """Warns where names hold numbers, and are not in the order of these."""
    ordered = sorted(classes, key=lambda name: [(part.zfill(99), part) for part in re.split(r"(\d+)", name)])
    if classes != ordered:
        label = next(label for label, name in enumerate(classes) if name != ordered[label])
        warnings.warn(
            f"class folders are sorted as text: label {label} is folder {classes[label]}, not {ordered[label]}; if "
            "that is not meant, give their numbers as many digits each, as in 007 and 010",
            stacklevel=3,
        )
