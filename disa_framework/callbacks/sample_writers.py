"""How samples become files.

Whoever draws something else than images brings a writer of its own: subclass `SampleWriter`, and give it to the command
by its path, `--writer my_package.MyWriter`.

Letters: `B` samples, `c h w` channels and pixels.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa_framework.data.archive import Pixels
from disa_framework.metrics.images import to_uint8

_LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"  # of a PNG file


@dataclass(frozen=True)
class SampleWriter(ABC):
    """Makes files of what the tokenizer decodes. Subclass as a frozen dataclass whose fields are its options.

    Attributes:
        suffix: of the files, with its dot.
    """

    suffix: ClassVar[str]

    @property
    def pictures(self) -> bool:
        """Whether its files can be shown, by their suffix."""
        return self.suffix in Image.registered_extensions()

    @abstractmethod
    def prepare(self, samples: Tensor) -> Tensor:
        """What is brought to the host of samples `[B, ...]`, computed where they were drawn; `B` stays in front."""

    @abstractmethod
    def encode(self, sample: Tensor) -> bytes:
        """The file of one sample that has been prepared, without `B`, on the host. Threads call this."""

    def is_whole(self, file: Path) -> bool:
        """Whether nothing of a file has been lost, as far as can be told quickly; if not, its sample is drawn again."""
        return file.stat().st_size > 0

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027  most take any shape
        """Raises a ValueError that says what would fit, if it has no files for samples of this shape, without `B`."""


@dataclass(frozen=True)
class Images(SampleWriter):
    """PNG files of images `[B, c, h, w]` in [-1, 1]; what lies outside is clipped."""

    suffix: ClassVar[str] = ".png"

    def prepare(self, samples: Tensor) -> Tensor:
        return to_uint8(samples)

    def encode(self, sample: Tensor) -> bytes:
        self.check(sample.shape)
        return png(sample.permute(1, 2, 0).numpy())

    def is_whole(self, file: Path) -> bool:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - len(_LAST_CHUNK)))
            return stream.read() == _LAST_CHUNK

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"a PNG has 1 or 3 channels, these samples are {list(shape)}: give the autoencoder with --vae, or "
                "another writer, as with --writer Arrays"
            )


@dataclass(frozen=True)
class Arrays(SampleWriter):
    """A `.npy` file of each sample, of any shape, in float32."""

    suffix: ClassVar[str] = ".npy"

    def prepare(self, samples: Tensor) -> Tensor:
        return samples.float()

    def encode(self, sample: Tensor) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, sample.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def is_whole(self, file: Path) -> bool:
        try:
            return np.lib.format.open_memmap(file, mode="r") is not None
        except ValueError:
            return False


def png(pixels: Pixels, smaller: int = 1) -> bytes:
    """The file of an image `[h, w, c]`, made so many times smaller."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.reduce(smaller).save(buffer, "png")
    return buffer.getvalue()


def pictured(samples: Tensor, columns: int = 10) -> Pixels:
    """What was drawn, images `[B, c, h, w]` in [-1, 1], as one picture, see `tiled`.

    Raises:
        ValueError: if the samples are no images.
    """
    writer = Images()
    writer.check(samples.shape[1:])
    return tiled(writer.prepare(samples).cpu(), columns)


def tiled(images: Tensor, columns: int = 10) -> Pixels:
    """Images, uint8 `[B, c, h, w]`, in rows of `columns` with a border, as one `[h, w, c]`; small ones are enlarged."""
    zoom = max(1, 48 // max(images.shape[2:]))
    images = images.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    B, c, h, w = images.shape
    rows, border = -(-B // columns), max(2, zoom // 2)
    grid = torch.full((c, rows * (h + border) + border, columns * (w + border) + border), 128).byte()
    for place, image in enumerate(images):
        top, left = (border + n * (side + border) for n, side in zip(divmod(place, columns), (h, w), strict=True))
        grid[:, top : top + h, left : left + w] = image
    return grid.permute(1, 2, 0).numpy()
