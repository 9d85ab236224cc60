"""Encoding the images of a folder, and their mirror images, once, to train on their latents: what disa-cache does.

Letters: `B` images in a batch, `C` latent channels, `H`, `W` latent places.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from disa_framework.data.image_folder import ImageFolder
from disa_framework.data.latents import LatentsFolder
from disa_framework.data.reading import ImageBatch, ImageData, Reading
from disa_framework.metrics.images import from_uint8
from disa_framework.resuming import RunIdentity, digest_of
from disa_framework.tokenizers import Autoencoder

Stored = Literal["float32", "float16"]


def encode(
    images: ImageFolder, vae: Autoencoder, latents: str | Path, dtype: Stored = "float32", reading: Reading = Reading()
) -> LatentsFolder | None:
    """Writes a folder of latents, which `LatentsData` reads; one that was begun is gone on with.

    Args:
        images: what is encoded.
        vae: encodes.
        latents: the folder that is written.
        dtype: of the numbers in the files.
        reading: how images are read; those that are read together are kept in one file.

    Returns:
        The folder; `None` on other processes than the first.

    Raises:
        ValueError: if image and autoencoder do not fit, or the folder holds latents of something else.
        OSError: if files are lost or cannot be written.
    """
    if images.image_size % vae.factor:
        raise ValueError(f"image_size must be a multiple of {vae.factor} for this autoencoder, got {images.image_size}")
    folder, size, count = LatentsFolder(latents), reading.batch_size, len(images)

    def finished() -> set[int]:
        return {i for shard in folder.finished() for i in range(shard * size, (shard + 1) * size)}

    data = ImageData(images.pixels, count, reading, torch.tensor(images.labels), finished)
    trainer = reading.runner()
    if trainer.is_global_zero:
        folder.claim(_identity(images, vae, size, dtype, str(trainer.precision)))
    encoder = _Encoder(vae, folder, size, getattr(torch, dtype))
    trainer.predict(encoder, datamodule=data, return_predictions=False)
    trainer.strategy.barrier("all latents are written")
    if not trainer.is_global_zero:
        return None
    if lost := folder.missing(count, size):
        raise OSError(f"{len(lost)} shards are missing in {folder.path}: start again")
    return folder


class _Encoder(LightningModule):
    """Encodes batches, and writes each as a shard."""

    def __init__(self, vae: Autoencoder, folder: LatentsFolder, shard_size: int, stored: torch.dtype) -> None:
        super().__init__()
        self.vae, self.folder, self.shard_size, self.stored = vae, folder, shard_size, stored

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Moments `[B, 2, 2C, H, W]`."""
        images = from_uint8(batch.pixels)
        return torch.stack((self.vae.moments(images), self.vae.moments(images.flip(-1))), dim=1).to(self.stored)

    def on_predict_batch_end(self, outputs: Any, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        moments: Tensor = outputs
        if not moments.isfinite().all():
            raise ValueError("the autoencoder gave NaN or infinite moments: check its weights, or store float32")
        self.folder.write(int(batch.indices[0]) // self.shard_size, moments.cpu(), torch.as_tensor(batch.condition))


def _identity(images: ImageFolder, vae: Autoencoder, shard_size: int, dtype: str, precision: str) -> RunIdentity:
    """What decides what the latents are."""
    names = "\n".join(os.path.relpath(file, images.root) for file in images.files)
    return {
        "vae": digest_of(vae),
        "scale": vae.scale,
        "image_size": images.image_size,
        "shard_size": shard_size,
        "dtype": dtype,
        "precision": precision,
        "num_images": len(images),
        "images_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "classes": list(images.classes),
    }
