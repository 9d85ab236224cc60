"""Fashion-MNIST, 70,000 gray images of clothes, 28x28 pixels (Xiao et al., arXiv 1708.07747).

Letters: `B` images in a batch, `N` images in the set.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from disa_framework.data.indexed import Batch, IndexedData, Item, Items
from disa_framework.hub.downloading import FOLDER as DOWNLOADS
from disa_framework.metrics.images import from_uint8
from disa_framework.toy.digits import Polarity, check_polarity

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FOLDERS = (f"{DOWNLOADS}/fashion-mnist", "/usr/share/datasets/fashion-mnist")
"""Where `disa-download` and Debian's package put the files."""
SPLIT_SEED = 0

_SIDE = 28
_FILES = {"train": "train", "test": "t10k"}


def fashion(part: Literal["train", "test"] = "train", folder: str | None = None) -> tuple[Tensor, Tensor]:
    """The 60,000 images for training or the 10,000 for testing, in the order of the files.

    Args:
        part: which of them.
        folder: holds the four published files, `train-images-idx3-ubyte.gz` and so on; by default each is
            looked for in `FOLDERS`.

    Returns:
        Images, uint8 `[N, 1, 28, 28]`, bright on black, and their classes, int64 `[N]`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of another kind.
    """
    kinds, places = ("images-idx3", "labels-idx1"), FOLDERS if folder is None else (folder,)
    images_file, labels_file = (_find(f"{_FILES[part]}-{kind}-ubyte.gz", places) for kind in kinds)
    images, labels = _read_idx(images_file, (_SIDE, _SIDE)), _read_idx(labels_file, ())
    if len(images) != len(labels) or not len(labels) or labels.max() >= len(CLASSES):
        raise ValueError(
            f"{labels_file} must hold a label from 0 to {len(CLASSES) - 1} for each of the {len(images)} images beside "
            f"it, but holds {len(labels)} labels up to {max(labels.tolist(), default=None)}: get the files again"
        )
    return images[:, None], labels.long()


def split(labels: Tensor, validation_size: int) -> tuple[Tensor, Tensor]:
    """Which images are for training and which for validation, as many of each class: the same in every run.

    Args:
        labels: int64 `[N]`.
        validation_size: how many are for validation, a multiple of the number of classes.

    Returns:
        Two index vectors, int64, in order, that share nothing and together name every image once.

    Raises:
        ValueError: `validation_size` is no such multiple, or leaves one side without a class.
    """
    each, rest = divmod(validation_size, len(CLASSES))
    fewest = int(labels.bincount(minlength=len(CLASSES)).min())
    if rest or not 1 <= each < fewest:
        raise ValueError(
            f"validation_size={validation_size}: must be a multiple of {len(CLASSES)}, as many of each class, from "
            f"{len(CLASSES)} to {len(CLASSES) * (fewest - 1)}"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    by_class = [order[labels[order] == label] for label in range(len(CLASSES))]
    train, validation = (torch.cat([places[side] for places in by_class]) for side in (slice(each, None), slice(each)))
    return train.sort().values, validation.sort().values


class _Fashion(Items):
    """Images kept as bytes, which are converted when they are read."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        super().__init__(CLASSES, seed=0)
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        places = torch.tensor([key[0] if isinstance(key, tuple) else key for key in keys])
        return from_uint8(self.pixels[places]), self.labels[places]

    def read(self, index: int, draws: np.random.Generator | None) -> Item:
        return from_uint8(self.pixels[index]), int(self.labels[index])

    def dataset(self) -> TensorDataset:
        return TensorDataset(from_uint8(self.pixels), self.labels)


class FashionData(IndexedData):
    """The 60,000 training images of Fashion-MNIST, split into training and validation; those for testing are left out.

    Batches are `(images, labels)`, float32 `[B, 1, 28, 28]` in [-1, 1] and int64 `[B]`.

    Args:
        folder: holds the four published files; by default they are where `disa-download fashion-mnist` puts them in the
            working directory, or Debian's package dataset-fashion-mnist.
        polarity: "plain" is bright clothes on black. With "random" an image is inverted with probability one half: the
            inverses of all images are in the set, too, on the same side of the split. `FashionFeatures` was trained on
            plain images, and does not read inverted ones.
        batch_size: images per batch and process; the last, smaller batch of a training epoch is dropped.
        validation_size: how many images are held out, as many of each class ("random" holds out both signs of each).
        num_workers: loader processes; 0 loads in the main one, which is fast enough.
        seed: of the order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a value out of its range, or a damaged file.
    """

    classes = CLASSES

    def __init__(
        self,
        folder: str | None = None,
        polarity: Polarity = "plain",
        batch_size: int = 128,
        validation_size: int = 5000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        check_polarity(polarity)
        pixels, labels = fashion("train", folder)
        self._train, self._val = (
            _Fashion(_signs(pixels[places], polarity), labels[places].repeat(1 if polarity == "plain" else 2))
            for places in split(labels, validation_size)
        )
        super().__init__(self._train, self._val, batch_size, num_workers, seed)

    def train_dataset(self) -> TensorDataset:
        """Training images and labels, `[N, 1, 28, 28]` and `[N]`."""
        return self._train.dataset()

    def val_dataset(self) -> TensorDataset:
        """Held-out images and labels, `[N, 1, 28, 28]` and `[N]`."""
        return self._val.dataset()

    def reference_images(self) -> Tensor:
        """The training images as uint8 `[N, 1, 28, 28]`: what reference statistics are made of."""
        return self._train.pixels


def _signs(pixels: Tensor, polarity: Polarity) -> Tensor:
    return pixels if polarity == "plain" else torch.cat([pixels, 255 - pixels])


def _find(name: str, folders: Sequence[str]) -> Path:
    found = next((path for folder in folders if (path := Path(folder) / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {name} in {' or '.join(folders)}: fetch the files with disa-download fashion-mnist, install Debian's "
            "package dataset-fashion-mnist, or give the folder that holds them, --data.folder"
        )
    return found


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes `[N, *shape]` of a gzipped IDX file, see http://yann.lecun.com/exdb/mnist."""
    header = struct.Struct(f">HBB{1 + len(shape)}I")
    try:
        with gzip.open(path) as file:
            content = file.read()
        magic, kind, axes, count, *sides = header.unpack_from(content)
        data = np.frombuffer(content, np.uint8, offset=header.size)
        if (magic, kind, axes, tuple(sides)) != (0, 8, 1 + len(shape), shape) or len(data) != count * np.prod(shape):
            raise ValueError(f"it begins {content[: header.size].hex()}, and {len(data)} bytes follow")
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is damaged, or no bytes [N, {shape}] as IDX: {error}; get it again") from error
    return torch.from_numpy(data.reshape(count, *shape).copy())
