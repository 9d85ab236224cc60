"""A folder of drawn samples, and `samples.json`, which says what made them.

While samples are drawn, one file each is the record. Of images, `samples.npz`, if there is one, holds all of a finished
run, and may then be the record alone. Without prompts files lie side by side: `000000.png`, …; with prompts where
GenEval's evaluator looks for them: image 1 of prompt 2 is `00002/samples/0001.png`, and `00002/metadata.jsonl` is the
prompt.

Letters: `B` images, `h w` pixels, `c` channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa_framework.callbacks.sample_writers import Images, SampleWriter, png, tiled
from disa_framework.data.archive import Pixels, read_array, write_archive
from disa_framework.files import remove_leftovers, write_atomically, write_json
from disa_framework.resuming import RunIdentity, claim

Format = Literal["png", "npz", "both"]
"""What is kept of the images of a finished run: PNG files, the archive `samples.npz`, or both."""
_BESIDE = ("samples.json", "samples.npz", "grid.png", "metadata.jsonl")


class SampleFolder:
    """Reads and writes one folder of samples.

    Args:
        path: the folder; it is made when something is written.
        prompts: what is drawn in turn, as objects with at least `prompt`; none for other conditions.
        writer: makes files of samples; PNG files of images by default.
    """

    def __init__(
        self, path: str | Path, prompts: Sequence[dict[str, Any]] = (), writer: SampleWriter | None = None
    ) -> None:
        self.path, self.prompts, self.writer = Path(path), prompts, writer or Images()

    @property
    def manifest(self) -> Path:
        """The file that says what made the samples."""
        return self.path / "samples.json"

    @property
    def archive(self) -> Path:
        """All images of a finished run in one file, as ADM's evaluator reads it."""
        return self.path / "samples.npz"

    def file(self, index: int) -> Path:
        """That of sample `index`."""
        if not self.prompts:
            return self.path / f"{index:06}{self.writer.suffix}"
        sample, prompt = divmod(index, len(self.prompts))
        return self._prompt_folder(prompt) / f"samples/{sample:04}{self.writer.suffix}"

    def finished(self) -> set[int]:
        """The samples that exist; what is left of a damaged file is none."""
        return {index for index, file in self._files() if self._holds(file)} | set(range(self.packed()))

    def packed(self) -> int:
        """How many images, from the first on, the archive holds."""
        return len(self._packed())

    def claim(self, identity: RunIdentity) -> None:
        """Makes the folder, and binds it to what decides its samples.

        Raises:
            ValueError: if it holds samples of another run.
            OSError: if it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        claim(self.manifest, identity, any(self._files()) or self.archive.exists(), "samples")
        for pattern in (".*.tmp", "[0-9]*/**/.*.tmp") if self.prompts else (".*.tmp",):
            remove_leftovers(self.path, self._owns, pattern)
        for number, prompt in enumerate(self.prompts):
            (self._prompt_folder(number) / "samples").mkdir(parents=True, exist_ok=True)
            write_atomically(self._prompt_folder(number) / "metadata.jsonl", (json.dumps(prompt) + "\n").encode())

    def facts(self) -> dict[str, Any]:
        """What `samples.json` says."""
        return dict(json.loads(self.manifest.read_text(encoding="utf-8")))

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to `samples.json`, beside the identity of the run."""
        write_json(self.manifest, {**self.facts(), **facts})

    def write(self, index: int, sample: Tensor) -> None:
        """Writes a sample, as `SampleWriter.prepare` gives it, unless it exists."""
        if not self._holds(self.file(index)) and index >= self.packed():
            write_atomically(self.file(index), self.writer.encode(sample))

    def read(self, indices: Sequence[int]) -> Tensor:
        """Images as uint8 `[B, c, h, w]`."""
        archive = self._packed()
        images = [archive[i] if i < len(archive) else self._pixels(i) for i in indices]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def keep(self, form: Format, count: int, labels: Sequence[int] | None) -> None:
        """Leaves the images 0 … count - 1 of a finished run, with their labels, in the form that is asked for.

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
        """`grid.png`, see `tiled`."""
        path = self.path / "grid.png"
        write_atomically(path, png(tiled(self.read(indices), columns)))
        return path

    def _unpack(self) -> None:
        """Writes the PNG files of what the archive holds."""
        for index, image in enumerate(self._packed()):
            if not self._holds(self.file(index)):
                write_atomically(self.file(index), png(image))

    def _packed(self) -> Sequence[Pixels] | Pixels:
        """What the archive holds, `[B, h, w, c]`."""
        try:
            return read_array(self.archive, "arr_0") if self.archive.exists() else ()
        except ValueError as error:
            raise ValueError(f"{error}: delete it") from error

    def _prompt_folder(self, prompt: int) -> Path:
        return self.path / f"{prompt:05}"

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Those of samples, whole or not."""
        for file in self.path.glob(f"{'*/samples/' if self.prompts else ''}*{self.writer.suffix}"):
            if (index := self._index(file)) is not None:
                yield index, file

    def _holds(self, file: Path) -> bool:
        """Whether a file is there, and whole."""
        return file.is_file() and self.writer.is_whole(file)

    def _owns(self, file: Path) -> bool:
        """Whether runs write such a file."""
        return file.name in _BESIDE or self._index(file) is not None

    def _index(self, file: Path) -> int | None:
        """The sample whose file this is, if it is any's."""
        name = str(file.relative_to(self.path)).removesuffix(self.writer.suffix)
        prompt, sample = [0, 0, *map(int, re.findall(r"\d+", name))][-2:]
        index = sample * max(1, len(self.prompts)) + prompt
        return index if self.file(index) == file else None

    def _pixels(self, index: int) -> Pixels:
        """`[h, w, c]` of a PNG file."""
        with Image.open(self.file(index)) as image:
            return np.atleast_3d(np.array(image))
