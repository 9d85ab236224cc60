"""Handwritten digits, 8x8 pixels, shipped with scikit-learn: data that need no download.

Letters: `B` images in a batch, `N` images in the set.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from disa_framework.data.indexed import IndexedData, Item, Items
from disa_framework.metrics.images import to_uint8

Polarity = Literal["random", "plain"]

NUM_DIGITS = 1797
SPLIT_SEED = 0
CAPTIONS = tuple(
    f"a handwritten {digit}"
    for digit in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
"""The prompt of each class."""


def digits(polarity: Polarity = "random") -> tuple[Tensor, Tensor]:
    """All digits, in scikit-learn's order.

    With "random" polarity an image is inverted with probability one half. Both signs of every image are
    in the set, which is that distribution exactly and needs no draw: image `i` and its inverse `i + 1797`.

    Args:
        polarity: "random" (N = 3594) or "plain", bright strokes on black (N = 1797).

    Returns:
        Images, float32 `[N, 1, 8, 8]` in [-1, 1], and their classes, int64 `[N]`.

    Raises:
        ValueError: unknown polarity.
    """
    check_polarity(polarity)
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.from_numpy(classes).long()
    if polarity == "random":
        images, labels = torch.cat([images, -images]), torch.cat([labels, labels])
    return images, labels


def split(validation_size: int) -> tuple[Tensor, Tensor]:
    """Which of the 1797 digits are for training and which for validation: the same in every run.

    Returns:
        Two index vectors, int64, that share nothing and together name every digit once.

    Raises:
        ValueError: `validation_size` leaves one side empty.
    """
    if not 1 <= validation_size < NUM_DIGITS:
        raise ValueError(
            f"validation_size={validation_size}: must leave at least one of the {NUM_DIGITS} digits on each "
            f"side; give a number from 1 to {NUM_DIGITS - 1}"
        )
    order = torch.randperm(NUM_DIGITS, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[validation_size:], order[:validation_size]


class _Digits(Items):
    """Those at some places, each with all its signs."""

    def __init__(self, polarity: Polarity, indices: Tensor, captions: bool) -> None:
        super().__init__(CAPTIONS, seed=0)
        images, labels = digits(polarity)
        # Row s holds sign s of every digit, so one index selects a digit with all its signs.
        by_sign = images.reshape(-1, NUM_DIGITS, 1, 8, 8)[:, indices]
        self.dataset = TensorDataset(by_sign.flatten(0, 1), labels.reshape(-1, NUM_DIGITS)[:, indices].flatten())
        self.captions = captions

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, draws: np.random.Generator | None) -> Item:
        image, label = self.dataset[index]
        return image, CAPTIONS[label] if self.captions else int(label)


class DigitsData(IndexedData):
    """The digits, split into training and validation, with batches `(images, labels)` or `(images, captions)`.

    Images are float32 `[B, 1, 8, 8]` in [-1, 1], labels int64 `[B]`, captions a list of `B` texts. A digit and
    its inverse are always on the same side of the split.

    Args:
        polarity: "random" makes light-on-dark or dark-on-light a decision of the whole image, so the first
            tokens have to make it; "plain" is the digits as they are.
        batch_size: images per batch and process; the last, smaller batch of a training epoch is dropped.
        validation_size: how many of the 1797 digits are held out ("random" holds out both signs of each).
        num_workers: loader processes; 0 loads in the main one.
        captions: whether batches hold `CAPTIONS`, for models that draw from prompts, instead of labels.
        seed: of the order.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        polarity: Polarity = "random",
        batch_size: int = 128,
        validation_size: int = 297,
        num_workers: int = 0,
        captions: bool = False,
        seed: int = 0,
    ) -> None:
        train, val = (_Digits(polarity, indices, captions) for indices in split(validation_size))
        super().__init__(train, val, batch_size, num_workers, seed)
        self._train, self._val = train.dataset, val.dataset

    def train_dataset(self) -> TensorDataset:
        """Training images and labels, `[N, 1, 8, 8]` and `[N]`."""
        return self._train

    def val_dataset(self) -> TensorDataset:
        """Held-out images and labels, `[N, 1, 8, 8]` and `[N]`."""
        return self._val

    def reference_images(self) -> Tensor:
        """The training images as uint8 `[N, 1, 8, 8]`: what reference statistics are made of."""
        return to_uint8(self._train.tensors[0])


def check_polarity(polarity: str) -> None:
    """Raises a ValueError for an unknown one."""
    if polarity not in get_args(Polarity):
        raise ValueError(f"polarity={polarity!r}: must be one of {get_args(Polarity)}; give one of them")
