"""A folder of drawn images: `000000.png`, …, and `samples.json`, which says what made them.

The PNG files are the record; an `.npz` and a grid are derived from them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa_framework.files import write_atomically
from disa_framework.metrics.images import to_uint8

_NAME = re.compile(r"(\d{6,})\.png")


class SampleFolder:
    """Reads and writes one folder of samples.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        """The file that says what made the images."""
        return self.path / "samples.json"

    def file(self, index: int) -> Path:
        """Where sample `index` is kept."""
        return self.path / f"{index:06}.png"

    def finished(self) -> set[int]:
        """The samples that exist."""
        if not self.path.is_dir():
            return set()
        return {int(m[1]) for entry in self.path.iterdir() if (m := _NAME.fullmatch(entry.name))}

    def claim(self, settings: dict[str, Any]) -> None:
        """Makes the folder, and binds it to the settings that decide what its images look like.

        Raises:
            ValueError: if it holds images of other settings.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        settings = json.loads(json.dumps(settings))
        if not self.manifest.exists():
            if self.finished():
                raise ValueError(f"{self.path} holds images that nothing describes: choose another --output")
            return self.describe({"settings": settings})
        try:
            known = dict(json.loads(self.manifest.read_text())["settings"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.manifest} is damaged: delete {self.path} or choose another --output") from error
        if differing := sorted(k for k in known.keys() | settings.keys() if known.get(k) != settings.get(k)):
            raise ValueError(
                f"{self.path} holds images made with other settings ({', '.join(differing)} differ; see "
                f"{self.manifest}): choose another --output, or delete the folder"
            )

    def describe(self, content: dict[str, Any]) -> None:
        """Writes `samples.json`."""
        write_atomically(self.manifest, (json.dumps(content, indent=2) + "\n").encode())

    def write(self, index: int, image: Tensor) -> None:
        """Writes an image `[c, h, w]` in [-1, 1] with one or three channels, unless it exists."""
        path = self.file(index)
        if path.exists():
            return
        buffer = io.BytesIO()
        Image.fromarray(_pixels(to_uint8(image.float()).cpu())).save(buffer, "png")
        write_atomically(path, buffer.getvalue())

    def read(self, indices: Sequence[int]) -> Tensor:
        """Images as uint8 `[B, c, h, w]`."""
        arrays = [np.array(Image.open(self.file(i))) for i in indices]
        images = torch.from_numpy(np.stack(arrays))
        return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)

    def write_npz(self, indices: Sequence[int], labels: Sequence[int] | None) -> Path:
        """`samples.npz` as ADM's evaluator reads it: `arr_0` `[B, h, w, c]` uint8, `arr_1` labels."""
        images = self.read(indices).permute(0, 2, 3, 1).numpy()
        arrays = [images] if labels is None else [images, np.array(labels)]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, *arrays)
        path = self.path / "samples.npz"
        write_atomically(path, buffer.getvalue())
        return path

    def write_grid(self, indices: Sequence[int], columns: int = 10) -> Path:
        """`grid.png`, the images in rows of `columns` with a border; small ones are enlarged."""
        images = self.read(indices)
        zoom = max(1, 48 // max(images.shape[2:]))
        images = images.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
        B, c, h, w = images.shape
        rows, border = -(-B // columns), max(2, zoom // 2)
        grid = torch.full((c, rows * (h + border) + border, columns * (w + border) + border), 128).byte()
        for place, image in enumerate(images):
            top, left = (border + n * (side + border) for n, side in zip(divmod(place, columns), (h, w), strict=True))
            grid[:, top : top + h, left : left + w] = image
        buffer = io.BytesIO()
        Image.fromarray(_pixels(grid)).save(buffer, "png")
        path = self.path / "grid.png"
        write_atomically(path, buffer.getvalue())
        return path


def _pixels(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 `[c, h, w]` as Pillow reads it."""
    if image.shape[0] not in (1, 3):
        raise ValueError(f"a PNG has 1 or 3 channels, these images have {image.shape[0]}")
    return image.squeeze(0).numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
