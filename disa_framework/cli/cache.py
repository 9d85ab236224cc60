"""`disa-cache`: encodes images once, to train on their latents."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from disa_framework.cli.common import make_parser, parse, run
from disa_framework.data.image_folder import ImageFolder, from_uint8
from disa_framework.data.latents import LatentsFolder
from disa_framework.data.requests import Request, RequestData
from disa_framework.models import Autoencoder

_WORKERS = min(4, os.cpu_count() or 1)
_CACHE = """Encodes the images of a folder of class folders, and their mirror images, to train on with LatentsData.

examples:
  disa-cache imagenet/train latents --vae kl16.ckpt
  disa-cache imagenet/train latents --vae kl16.ckpt --batch_size 256 --num_workers 12 --trainer.devices 8

--vae FILE is short for --vae.weights FILE. A run that was stopped goes on where it was when it is started again.
"""


def cache(args: Sequence[str] | None = None) -> LatentsFolder:
    """Writes a folder of latents and returns it; see `disa-cache --help`."""
    parser = make_parser("disa-cache", _CACHE)
    parser.usage = "disa-cache IMAGES LATENTS --vae FILE [--option VALUE ...]"
    parser.add_argument("images", type=str, help="Folder that holds a folder of images for each class.")
    parser.add_argument("latents", type=str, help="Folder for the latents.")
    parser.add_class_arguments(Autoencoder, "vae", as_group=False)
    parser.add_argument("--image_size", type=int, default=256, help="Width and height that images are cropped to.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images encoded together, and kept in one file.")
    parser.add_argument("--dtype", type=Literal["float32", "float16"], default="float32", help="Numbers in the files.")
    parser.add_argument(
        "--num_workers", type=int, default=_WORKERS, help="Processes that read images, for each device."
    )
    args = sys.argv[1:] if args is None else args
    config = parse(parser, [re.sub(r"^--vae(?==|$)", "--vae.weights", argument) for argument in args])
    if config.vae.weights is None:
        raise ValueError("give the weights of the autoencoder with --vae")
    init = parser.instantiate(config)
    vae, images = Autoencoder(**init.vae), ImageFolder(config.images, config.image_size)
    if config.image_size % vae.factor:
        raise ValueError(f"image_size must be a multiple of {vae.factor} for this autoencoder, got {config.image_size}")
    return _encode(vae, images, init, _settings(parser, config, images))


def command() -> None:
    """The program `disa-cache`."""
    run("disa-cache", cache)


class _Batches(Dataset[tuple[Request, Tensor]]):
    """Whole batches as items: with their images, uint8 `[B, 3, h, w]`."""

    def __init__(self, batches: Sequence[Request], images: ImageFolder) -> None:
        self.batches, self.images = batches, images

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> tuple[Request, Tensor]:
        batch = self.batches[place]
        return batch, torch.stack([self.images.pixels(i) for i in batch.indices.tolist()])


class _Images(RequestData):
    """The batches that are not cached yet, with their images."""

    def __init__(self, images: ImageFolder, folder: LatentsFolder, batch_size: int, num_workers: int) -> None:
        def finished() -> set[int]:
            return {i for shard in folder.finished() for i in range(shard * batch_size, (shard + 1) * batch_size)}

        super().__init__(len(images), torch.tensor(images.labels), batch_size, finished)
        self.images, self.num_workers = images, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Batches(self.pending, self.images), batch_size=None, num_workers=self.num_workers)


class _Encoder(LightningModule):
    """Encodes batches, and writes each as a shard."""

    def __init__(self, vae: Autoencoder, folder: LatentsFolder, shard_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.folder, self.shard_size, self.stored = vae, folder, shard_size, dtype

    def predict_step(self, batch: tuple[Request, Tensor], batch_idx: int) -> Tensor:
        images = from_uint8(batch[1])
        return torch.stack((self.vae.moments(images), self.vae.moments(images.flip(-1))), dim=1).to(self.stored)

    def on_predict_batch_end(
        self, outputs: Any, batch: tuple[Request, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        (indices, labels), moments = batch[0], outputs
        assert isinstance(labels, Tensor)
        if not moments.isfinite().all():
            raise ValueError("the autoencoder gave NaN or infinite moments: check its weights, or store float32")
        self.folder.write(int(indices[0]) // self.shard_size, moments.cpu(), labels.cpu())


def _encode(vae: Autoencoder, images: ImageFolder, init: Namespace, settings: dict[str, Any]) -> LatentsFolder:
    folder, size = LatentsFolder(init.latents), init.batch_size
    data = _Images(images, folder, size, init.num_workers)
    module = _Encoder(vae, folder, size, getattr(torch, init.dtype))
    trainer = Trainer(**{**init.trainer, "logger": False, "enable_checkpointing": False, "inference_mode": True})
    if trainer.is_global_zero:
        folder.claim(settings)
    trainer.predict(module, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("all latents are written")
    if trainer.is_global_zero:
        if lost := set(range(-(-len(images) // size))) - folder.finished():
            raise OSError(f"{len(lost)} shards are missing in {folder.path}: start the command again")
        print(f"latents of {len(images)} images in {len(images.classes)} classes: {folder.path}")
    return folder


def _settings(parser: ArgumentParser, config: Namespace, images: ImageFolder) -> dict[str, Any]:
    """What decides what the latents are."""
    whole = json.loads(parser.dump(config, format="json", skip_unset=False))
    with open(config.vae.weights, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    names = "\n".join(os.path.relpath(file, config.images) for file in images.files)
    return {
        "vae": {name: value for name, value in whole["vae"].items() if name != "weights"},
        "weights_sha256": weights,
        "image_size": config.image_size,
        "shard_size": config.batch_size,
        "dtype": config.dtype,
        "precision": whole["trainer"]["precision"],
        "num_images": len(images),
        "images_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "classes": images.classes,
    }
