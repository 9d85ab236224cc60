"""A set of images on disk, of a folder or an archive, read one by one.

Letters: `N` images, `c` channels, `h w` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disa_framework.data.archive import Pixels, names_of, read_array
from disa_framework.data.decoding import SUFFIXES, any_in_color, find_images, read_pixels
from disa_framework.data.indexed import DamagedFileError

_OVERVIEW = "grid.png"  # disa-predict's, of images that are there anyway
_ARCHIVE = "samples.npz"  # where disa-predict keeps images if not as files
_IMAGES = "arr_0"  # as ADM calls them


class ImageFiles:
    """The images of a folder and all below it, or of an `.npz` with `arr_0 [N, h, w, c]` as ADM writes it.

    All have to be of one size. They are gray if all are, and otherwise in color.

    Args:
        path: the folder or the archive. A folder may hold `samples.npz` instead of files, as disa-predict leaves it.
        image_size: `h` and `w` that files are cropped to as ADM does it; none to take them as they are.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: no images; an archive of something else.
    """

    def __init__(self, path: str | Path, image_size: int | None = None) -> None:
        self.path, self.image_size = Path(path), image_size
        if not self.path.exists():
            raise FileNotFoundError(f"no folder or file at {path}: give one that holds images")
        packed = self.path if self.path.is_file() else self.path / _ARCHIVE
        # An archive is a finished run's; files beside it may be those of another number of images.
        self._images: Sequence[str] | Pixels = _open(packed) if packed.is_file() else _files(self.path)
        if not len(self._images):
            held = f"{packed} holds no images" if packed.is_file() else ""
            raise ValueError(held or f"no images ({', '.join(SUFFIXES)}) in {path}, nor a {_ARCHIVE}")
        self._in_color = isinstance(self._images, list) and any_in_color(self._images)
        self.shape = self._read(0).shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 `[c, h, w]`.

        Raises:
            DamagedFileError: naming the file that is damaged or of another size than the first.
        """
        image = self._read(index)
        if image.shape != self.shape:
            raise DamagedFileError(
                f"{self._images[index]} has {_size(image)} pixels, {self._images[0]} has {_size(self._read(0))}: all "
                "images must be of one size; --image_size crops those of a reference"
            )
        return image

    def _read(self, index: int) -> Tensor:
        image = self._images[index]
        if isinstance(image, str):
            return read_pixels(image, self.image_size, self._in_color)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def holds_images(path: Path) -> bool:
    """Whether an `.npz` has images in it."""
    return _IMAGES in names_of(path)


def _files(path: Path) -> list[str]:
    return [file for file in find_images(path) if Path(file).name != _OVERVIEW]


def _open(path: Path) -> Pixels:
    """The images `[N, h, w, c]` of an archive."""
    if not holds_images(path):
        raise ValueError(f"{path} lacks {_IMAGES}, holds {names_of(path)}: give one with images as ADM writes it")
    images: Pixels = read_array(path, _IMAGES)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not all(images.shape[1:]):
        held = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{_IMAGES} of {path} is {held}: must be uint8 [N, h, w, c] with 1 or 3 channels")
    return images


def _size(image: Tensor) -> str:
    return f"{image.shape[1]}x{image.shape[2]}"
