"""A folder of cached latents: shards `000000.safetensors`, …, and `latents.json`, which says what made them.

A shard holds consecutive images: `moments [n, 2, 2C, H, W]`, of each image and of its mirror image, and
`labels [n]`. Every shard but the last has `shard_size` images.

Letters: `n` images in a shard, `B` in a batch, `C` latent channels, `H`, `W` latent places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from disa_framework.data.indexed import DamagedFileError, IndexedData, Item, Items
from disa_framework.files import remove_leftovers, write_atomically
from disa_framework.resuming import RunIdentity, claim
from disa_framework.tokenizers.autoencoder import sample_posterior

_NAME = re.compile(r"(\d{6,})\.safetensors")


class LatentsFolder:
    """Reads and writes one folder of cached latents.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        """The file that says what made the latents."""
        return self.path / "latents.json"

    def file(self, shard: int) -> Path:
        """Where a shard is kept."""
        return self.path / f"{shard:06}.safetensors"

    def finished(self) -> set[int]:
        """The shards that exist."""
        if not self.path.is_dir():
            return set()
        return {int(m[1]) for entry in self.path.iterdir() if (m := _NAME.fullmatch(entry.name))}

    def missing(self, count: int, shard_size: int) -> set[int]:
        """The shards of so many images that do not exist yet."""
        return set(range(-(-count // shard_size))) - self.finished()

    def claim(self, identity: RunIdentity) -> None:
        """Makes the folder, and binds it to what decides what its shards hold.

        Raises:
            ValueError: if it holds other shards.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not (occupied := bool(self.finished())):
            self.manifest.unlink(missing_ok=True)
        claim(self.manifest, identity, occupied, "latents")
        remove_leftovers(self.path, lambda file: file == self.manifest or bool(_NAME.fullmatch(file.name)))

    def identity(self) -> RunIdentity:
        """What made the latents.

        Raises:
            FileNotFoundError: if this is no folder of latents.
            ValueError: if it is damaged.
        """
        if not self.manifest.is_file():
            raise FileNotFoundError(f"no latents in {self.path}: make them with disa-cache")
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8"))["identity"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.manifest} is damaged: delete {self.path} and run disa-cache again") from error

    def write(self, shard: int, moments: Tensor, labels: Tensor) -> None:
        """Writes a shard as a whole."""
        write_atomically(self.file(shard), save({"moments": moments.contiguous(), "labels": labels}))

    def read(self, shard: int, place: int, mirrored: bool) -> tuple[Tensor, int]:
        """Moments `[2C, H, W]` of one image of a shard, float32, and its label.

        Raises:
            DamagedFileError: naming the file.
        """
        file = self.file(shard)
        try:
            with safe_open(file, framework="pt") as tensors:
                moments = tensors.get_slice("moments")[place, int(mirrored)]
                label = tensors.get_slice("labels")[place]
        except Exception as error:  # of what a shard lacks, too
            raise DamagedFileError(f"{file} is damaged ({error}): delete it and run disa-cache again") from error
        return moments.float(), int(label)


class Latents(Items):
    """The latents of a folder that `disa-cache` wrote.

    Args:
        folder: where they are.
        seed: of mirroring and posterior samples.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a damaged manifest, or missing shards.
    """

    def __init__(self, folder: str | Path, seed: int = 0) -> None:
        self.folder = LatentsFolder(folder)
        made = self.folder.identity()
        try:
            self.count, self.shard_size = int(made["num_images"]), int(made["shard_size"])
            self.scale, classes = float(made["scale"]), list(made["classes"])
            if self.count < 1 or self.shard_size < 1:
                raise ValueError(f"{self.count} latents, {self.shard_size} in a shard")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder.manifest} is damaged ({error}): delete {folder} and cache again") from error
        super().__init__(classes, seed)
        if lost := self.folder.missing(self.count, self.shard_size):
            raise ValueError(f"{len(lost)} shards are missing in {folder}: run disa-cache again, it goes on from there")

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, draws: np.random.Generator | None) -> Item:
        """Latents `[C, H, W]`: of the image or its mirror image, a posterior sample; without draws, of the image,
        the posterior's mean."""
        moments, label = self.folder.read(
            *divmod(index, self.shard_size), mirrored=draws is not None and draws.random() < 0.5
        )
        noise = None
        if draws is not None:
            C2, H, W = moments.shape
            noise = torch.from_numpy(draws.standard_normal((C2 // 2, H, W), dtype=np.float32))
        return sample_posterior(moments, noise, self.scale), label


class LatentsData(IndexedData):
    """Cached latents, with batches `(latents, labels)`; a model is trained on them without a tokenizer.

    Latents are float32 `[B, C, H, W]`, scaled as the autoencoder scales them, labels int64 `[B]`. In training,
    mirror images and posterior samples are drawn anew in every epoch.

    Args:
        folder: as `disa-cache` wrote it.
        batch_size: latents per batch and process; the last, smaller batch of a training epoch is dropped.
        validation: another such folder, or the share of the latents that is held out.
        num_workers: loader processes; 0 loads in the main one.
        seed: of the order, the mirroring and the posterior samples.

    Raises:
        ValueError: a value out of its range; a folder that is damaged or not complete.
        FileNotFoundError: no such folder.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 64,
        validation: float | str = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        held_out = Latents(validation) if isinstance(validation, str) else validation
        super().__init__(Latents(folder, seed), held_out, batch_size, num_workers, seed)
