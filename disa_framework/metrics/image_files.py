"""Images on disk: a folder of PNG or JPEG files, or an archive, read one by one.

Letters: `N` images, `c` channels, `h w` pixels.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disa_framework.callbacks.archive import Pixels, open_archive
from disa_framework.data.image_folder import center_crop
from disa_framework.data.indexed import DamagedFileError
from disa_framework.data.requests import Request, RequestData

_SUFFIXES = (".png", ".jpg", ".jpeg")
_OVERVIEW = "grid.png"  # disa-predict's, of images that are there anyway
_ARCHIVE = "samples.npz"  # where disa-predict keeps images if not as files
_IMAGES = "arr_0"  # as ADM calls them


class ImageFiles:
    """The images of a folder and all below it, or of an `.npz` with `arr_0 [N, h, w, c]` as ADM writes it.

    All have to be of one size, and gray or in color.

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
        self._images: Sequence[Path] | Pixels = _open(packed) if packed.is_file() else _files(self.path)
        if not len(self._images) and not packed.is_file():
            raise ValueError(f"no images ({', '.join(_SUFFIXES)}) in {path}, nor a {_ARCHIVE}")
        if not len(self._images):
            raise ValueError(f"{packed} holds no images")
        self.shape = self._read(0).shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 `[c, h, w]`.

        Raises:
            DamagedFileError: naming the file that is damaged or of another shape than the first.
        """
        image = self._read(index)
        if image.shape != self.shape:
            raise DamagedFileError(
                f"{self._images[index]} is {_size(image.shape)}, {self._images[0]} is {_size(self.shape)}: "
                "all images must be of one size"
            )
        return image

    def _read(self, index: int) -> Tensor:
        image = self._images[index]
        pixels = _decode(image, self.image_size) if isinstance(image, Path) else np.array(image)
        return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


class Images(NamedTuple):
    """Images read together.

    Attributes:
        indices: `[B]` int64, their places in the set.
        pixels: uint8 `[B, c, h, w]`.
    """

    indices: Tensor
    pixels: Tensor


class ImageData(RequestData):
    """All images of a set, for prediction, in batches of `Images`.

    Args:
        images: the set.
        batch_size: images read together.
        num_workers: loader processes; 0 loads in the main one.
    """

    def __init__(self, images: ImageFiles, batch_size: int, num_workers: int) -> None:
        super().__init__(len(images), None, batch_size)
        self.images, self.num_workers = images, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        batches = _Batches(self.pending, self.images)
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers)


class _Batches(Dataset[Images]):
    """Whole batches as items, so that a distributed sampler hands out whole batches."""

    def __init__(self, requests: Sequence[Request], images: ImageFiles) -> None:
        self.requests, self.images = requests, images

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, place: int) -> Images:
        indices = self.requests[place].indices
        return Images(indices, torch.stack([self.images[i] for i in indices.tolist()]))


def archive_keys(path: Path) -> list[str]:
    """The names of the arrays in an `.npz`.

    Raises:
        ValueError: it is none, or is cut short.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz archive, or is cut short")
    with np.load(path, allow_pickle=False) as archive:
        return list(archive.files)


def holds_images(path: Path) -> bool:
    """Whether an `.npz` has images in it."""
    return _IMAGES in archive_keys(path)


def _files(path: Path) -> list[Path]:
    """The image files in a folder and below it, sorted folder by folder."""
    found = []
    for parent, _, names in sorted(os.walk(path, followlinks=True)):
        chosen = (n for n in sorted(names) if n.lower().endswith(_SUFFIXES) and n != _OVERVIEW and n[0] != ".")
        found += [Path(parent, name) for name in chosen]
    return found


def _open(path: Path) -> Pixels:
    """The images `[N, h, w, c]` of an archive: read where they are looked at, if they lie first and uncompressed."""
    if not holds_images(path):
        raise ValueError(f"{path} lacks {_IMAGES}, holds {archive_keys(path)}: give one with images as ADM writes it")
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    mapped = first.filename == f"{_IMAGES}.npy" and first.compress_type == zipfile.ZIP_STORED
    with np.load(path, allow_pickle=False) as archive:
        images: Pixels = open_archive(path) if mapped else archive[_IMAGES]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        held = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{_IMAGES} of {path} is {held}: must be uint8 [N, h, w, c] with 1 or 3 channels")
    return images


def _decode(file: Path, image_size: int | None) -> Pixels:
    """`[h, w]` of a gray file, `[h, w, 3]` of any other."""
    try:
        with Image.open(file) as image:
            whole = image.convert("L" if image.mode in ("1", "L") else "RGB")
            return np.array(whole if image_size is None else center_crop(whole, image_size))
    except Exception as error:  # damage makes Pillow raise all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(f"{file} is damaged or not an image: {reason}") from error


def _size(shape: torch.Size) -> str:
    c, h, w = shape
    return f"{h}x{w} with {c} channel{'s' * (c > 1)}"
