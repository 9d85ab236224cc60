"""A folder of drawn images, and `samples.json`, which says what made them.

While images are drawn, PNG files are the record. `samples.npz`, if there is one, holds all images of a finished run,
and may then be the record alone. Without prompts images lie side by side: `000000.png`, …; with prompts where GenEval's
evaluator looks for them: image 1 of prompt 2 is `00002/samples/0001.png`, and `00002/metadata.jsonl` is the prompt.

Letters: `B` images, `h w` pixels, `c` channels.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa_framework.callbacks.archive import Pixels, open_archive, write_archive
from disa_framework.files import differing, write_atomically

Format = Literal["png", "npz", "both"]
"""What a finished run keeps: PNG files, the archive `samples.npz`, or both."""


class SampleFolder:
    """Reads and writes one folder of samples.

    Args:
        path: the folder; it is made when something is written.
        prompts: what is drawn in turn, as objects with at least `prompt`; none for class labels.
    """

    def __init__(self, path: str | Path, prompts: Sequence[dict[str, Any]] = ()) -> None:
        self.path = Path(path)
        self.prompts = prompts

    @property
    def manifest(self) -> Path:
        """The file that says what made the images."""
        return self.path / "samples.json"

    @property
    def archive(self) -> Path:
        """All images of a finished run in one file, as ADM's evaluator reads it."""
        return self.path / "samples.npz"

    def file(self, index: int) -> Path:
        """The PNG file of sample `index`."""
        if not self.prompts:
            return self.path / f"{index:06}.png"
        image, prompt = divmod(index, len(self.prompts))
        return self._prompt_folder(prompt) / f"samples/{image:04}.png"

    def finished(self) -> set[int]:
        """The samples that exist."""
        files = self.path.glob("*/samples/*.png" if self.prompts else "*.png")
        drawn = {index for file in files if (index := self._index(file)) is not None}
        return drawn | set(range(self.packed()))

    def packed(self) -> int:
        """How many samples, from the first on, the archive holds."""
        return len(self._packed())

    def claim(self, settings: dict[str, Any]) -> None:
        """Makes the folder, and binds it to the settings that decide what its images look like.

        Raises:
            ValueError: if it holds images of other settings.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for pattern in (".*.tmp", "[0-9]*/**/.*.tmp") if self.prompts else (".*.tmp",):
            for leftover in self.path.glob(pattern):
                leftover.unlink(missing_ok=True)
        if self.manifest.exists():
            self._compare(settings)
        elif self.finished():
            raise ValueError(f"{self.path} holds images that nothing describes: choose another --output")
        else:
            self.describe({"settings": settings})
        for number, prompt in enumerate(self.prompts):
            (self._prompt_folder(number) / "samples").mkdir(parents=True, exist_ok=True)
            write_atomically(self._prompt_folder(number) / "metadata.jsonl", (json.dumps(prompt) + "\n").encode())

    def describe(self, content: dict[str, Any]) -> None:
        """Writes `samples.json`."""
        write_atomically(self.manifest, (json.dumps(content, indent=2) + "\n").encode())

    def write(self, index: int, image: Tensor) -> None:
        """Writes an image, bytes `[c, h, w]` of one or three channels, unless it exists."""
        if not self.file(index).exists() and index >= self.packed():
            write_atomically(self.file(index), _png(image.permute(1, 2, 0).cpu().numpy()))

    def read(self, indices: Sequence[int]) -> Tensor:
        """Images as uint8 `[B, c, h, w]`."""
        archive = self._packed()
        images = [archive[i] if i < len(archive) else self._pixels(i) for i in indices]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def keep(self, form: Format, count: int, labels: Sequence[int] | None) -> None:
        """Leaves the samples 0 … count - 1 of a finished run, with their labels, in the form that is asked for.

        It can be killed at any moment and called again: what is removed is kept elsewhere already.
        """
        whole = self.packed() == count
        if form != "npz" or not whole:
            self._unpack()
        if form != "png" and not whole:
            write_archive(self.archive, (self._pixels(i) for i in range(count)), count, labels)
        if form == "png":
            self.archive.unlink(missing_ok=True)
        if form == "npz":
            for index in range(count):
                self.file(index).unlink(missing_ok=True)

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
        path = self.path / "grid.png"
        write_atomically(path, _png(grid.permute(1, 2, 0).numpy()))
        return path

    def _unpack(self) -> None:
        """Writes the PNG files of what the archive holds."""
        for index, image in enumerate(self._packed()):
            if not self.file(index).exists():
                write_atomically(self.file(index), _png(image))

    def _packed(self) -> Sequence[Pixels] | Pixels:
        """What the archive holds, `[B, h, w, c]`."""
        return open_archive(self.archive) if self.archive.exists() else ()

    def _prompt_folder(self, prompt: int) -> Path:
        return self.path / f"{prompt:05}"

    def _index(self, file: Path) -> int | None:
        """The sample whose file this is, if it is any's."""
        prompt, image = [0, 0, *map(int, re.findall(r"\d+", str(file.relative_to(self.path))))][-2:]
        index = image * max(1, len(self.prompts)) + prompt
        return index if self.file(index) == file else None

    def _pixels(self, index: int) -> Pixels:
        """`[h, w, c]` of a PNG file."""
        with Image.open(self.file(index)) as image:
            return np.atleast_3d(np.array(image))

    def _compare(self, settings: dict[str, Any]) -> None:
        try:
            known = dict(json.loads(self.manifest.read_text())["settings"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.manifest} is damaged: delete {self.path} or choose another --output") from error
        if names := differing(known, settings):
            raise ValueError(
                f"{self.path} holds images made with other settings ({names} differ; see "
                f"{self.manifest}): choose another --output, or delete the folder"
            )


def _png(image: Pixels) -> bytes:
    """The file of an image `[h, w, c]`."""
    channels = image.shape[2]
    if channels not in (1, 3):
        raise ValueError(f"a PNG has 1 or 3 channels, these images have {channels}")
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if channels == 1 else image).save(buffer, "png")
    return buffer.getvalue()
