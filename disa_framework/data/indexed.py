"""Data modules over items that are read one by one, in every epoch with other random draws.

What is random about an item depends on the seed, the epoch and the item's place alone: not on the batch it fell
into, on the number of loader processes or ranks, or on where a run was resumed.

Letters: `B` items in a batch.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from disa_framework.data.position import Position, position
from disa_framework.data.workers import worker_options

Item = tuple[Tensor, int | str]
Batch = tuple[Tensor, Tensor | list[str]]

_SPLIT_SEED = 0


class DamagedFileError(ValueError):
    """A file that cannot be read; its message is one line, also when it comes from a loader process."""

    def __init__(self, message: str) -> None:
        # A loader process hands on an error as the text of its traceback.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class Items(Dataset[Item], ABC):
    """Images or latents, each with its label or caption: `items[i]` as it is, `items[i, epoch]` with draws of an epoch.

    Args:
        classes: names of the labels 0, 1, ….
        seed: of the draws.
    """

    def __init__(self, classes: Sequence[str], seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.classes, self.seed = tuple(classes), seed

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        if isinstance(key, tuple):
            index, epoch = key
            return self.read(index, np.random.default_rng((self.seed, epoch, index)))
        return self.read(key, None)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """The batch of these keys; overridden where reading them together is faster than one by one."""
        contents, labels = zip(*map(self.__getitem__, keys), strict=True)
        return torch.stack(contents), list(labels) if isinstance(labels[0], str) else torch.tensor(labels)

    @abstractmethod
    def read(self, index: int, draws: np.random.Generator | None) -> Item:
        """An item and its label; without draws it has nothing random."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are."""


class IndexedData(LightningDataModule):
    """Batches `(images or latents [B, …], labels [B])`, for training and validation.

    Training batches are shuffled, full, and drawn anew in every epoch; validation batches come in order, without
    draws. Training that goes on from a checkpoint goes on within its epoch. The global random generator is neither
    read nor changed.

    Args:
        items: to train with.
        validation: items to validate with, or the share of `items` that is held out, the same in every run.
        batch_size: items per batch and process.
        num_workers: loader processes; 0 loads in the main one.
        seed: of the order.

    Raises:
        ValueError: a value out of its range, or validation items of other classes.
    """

    def __init__(self, items: Items, validation: Items | float, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if isinstance(validation, Items):
            if validation.classes != items.classes:
                raise ValueError("the validation folder has other classes than the training folder: give both the same")
            self.train_indices, self.validation_indices = list(range(len(items))), list(range(len(validation)))
            self.validation_items = validation
        else:
            self.train_indices, self.validation_indices = split(len(items), validation)
            self.validation_items = items
        if not 1 <= batch_size <= len(self.train_indices):
            count = len(self.train_indices)
            raise ValueError(f"batch_size must be from 1 to the {count} training items, got {batch_size}")
        self.items, self.batch_size, self.num_workers, self.seed = items, batch_size, num_workers, seed
        self.position = Position(0, 0)

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.items.classes)

    def train_dataloader(self) -> DataLoader[Item]:
        return self._loader(self.items, self.train_indices, train=True)

    def val_dataloader(self) -> DataLoader[Item]:
        """Empty if nothing is held out."""
        return self._loader(self.validation_items, self.validation_indices, train=False)

    def state_dict(self) -> dict[str, Any]:
        """Where training goes on."""
        return position(self.trainer)._asdict() if self.trainer else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = Position(**state_dict)
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def _loader(self, items: Items, indices: Sequence[int], train: bool) -> DataLoader[Item]:
        return DataLoader(
            items,
            batch_size=self.batch_size,
            sampler=_Keys(self, indices, train),
            drop_last=train,
            persistent_workers=self.num_workers > 0,
            collate_fn=tuple,  # they come as a batch
            generator=torch.Generator(),  # or the loader would draw from the global one
            **worker_options(self.num_workers),
        )


class _Keys(DistributedSampler[Any]):
    """This rank's share of the keys of an epoch: `(index, epoch)` in random order, or `index` in order.

    Lightning tells a sampler the epoch, and leaves a distributed one in its place. An epoch that training goes on with
    lacks what was trained on already.
    """

    def __init__(self, data: IndexedData, indices: Sequence[int], train: bool) -> None:
        ranks, rank = (data.trainer.world_size, data.trainer.global_rank) if data.trainer else (1, 0)
        super().__init__(indices, ranks, rank, shuffle=train, seed=data.seed, drop_last=train)  # type: ignore[arg-type]
        self.data, self.indices, self.train = data, indices, train

    def __iter__(self) -> Iterator[int | tuple[int, int]]:
        if not self.train:
            return (self.indices[place] for place in super().__iter__())
        begun = self.data.position
        self.epoch = epoch = max(self.epoch, begun.epoch)  # loader processes are given work before Lightning tells it
        trained = begun.batches * self.data.batch_size if epoch == begun.epoch else 0
        return ((self.indices[place], epoch) for place in islice(super().__iter__(), trained, None))


def split(count: int, share: float) -> tuple[list[int], list[int]]:
    """Places for training and for validation, in order: the same in every run.

    Raises:
        ValueError: a share that leaves nothing to train with, or nothing to validate with although it is not 0.
    """
    held_out = round(share * count)
    if not 0 <= held_out < count or bool(held_out) != bool(share):
        raise ValueError(
            f"validation must be a folder, or a share of the {count} items from 0 to less than 1 that leaves at "
            f"least one on each side, got {share}"
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(count)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())
