"""A folder of cached latents: shards `000000.safetensors`, …, and `latents.json`, which says what made them.

A shard holds consecutive images: `moments [n, 2, 2C, H, W]`, of each image and of its mirror image, and
`labels [n]`. Every shard but the last has `shard_size` images.

Letters: `n` images in a shard, `B` in a batch, `C` latent channels, `H`, `W` latent places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from disa_framework.data.indexed import DamagedFileError, IndexedData, Item, Items
from disa_framework.files import differing, write_atomically
from disa_framework.models.autoencoder import sample_posterior

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

    def claim(self, settings: dict[str, Any]) -> None:
        """Makes the folder, and binds it to the settings that decide what its shards hold.

        Raises:
            ValueError: if it holds shards of other settings.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not self.finished():
            return write_atomically(self.manifest, (json.dumps(settings, indent=2) + "\n").encode())
        if not self.manifest.exists():
            raise ValueError(f"{self.path} holds latents that nothing describes: choose another folder")
        if names := differing(self.settings(), settings):
            raise ValueError(
                f"{self.path} holds latents made with other settings ({names} differ; see "
                f"{self.manifest}): choose another folder, or delete it"
            )

    def settings(self) -> dict[str, Any]:
        """What made the latents.

        Raises:
            FileNotFoundError: if this is no folder of latents.
            ValueError: if it is damaged.
        """
        if not self.manifest.is_file():
            raise FileNotFoundError(f"no latents in {self.path}: make them with disa-cache")
        try:
            return dict(json.loads(self.manifest.read_text()))
        except (TypeError, ValueError) as error:
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
        except (SafetensorError, OSError) as error:
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
        settings = self.folder.settings()
        try:
            self.count, self.shard_size = int(settings["num_images"]), int(settings["shard_size"])
            self.scale = float(settings["vae"]["scale"])
            super().__init__(settings["classes"], seed)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.folder.manifest} is damaged ({error}): delete {folder} and cache again") from error
        if lost := set(range(-(-self.count // self.shard_size))) - self.folder.finished():
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
