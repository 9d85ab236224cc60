"""An `.npz` of arrays, and of images as ADM's evaluator reads it, without holding them all in memory.

50,000 images of 256 by 256 pixels are 10 GB. They are kept uncompressed, as ADM keeps them, so that they can be mapped.
Letters: `B` images, `h w` pixels, `c` channels.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from disa_framework.hub.reading import instead

Pixels = NDArray[np.uint8]

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of what else is told of it


def write_archive(path: Path, images: Iterable[Pixels], count: int, labels: Sequence[int] | None) -> None:
    """Writes `arr_0 [B, h, w, c]`, and `arr_1 [B]` if there are labels; the file is whole or absent.

    Args:
        images: `count` of them, `[h, w, c]`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                for place, image in enumerate(images):
                    if place == 0:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *image.shape)}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(image.tobytes())
            if labels is not None:
                with archive.open("arr_1.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(labels), allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def names_of(path: Path) -> list[str]:
    """The names of the arrays in an `.npz`.

    Raises:
        ValueError: it is none, or is cut short.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            kind = instead(file.read(256))
        raise ValueError(f"{path} is {kind or 'no .npz archive, or is cut short'}")
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_array(path: Path, name: str) -> NDArray[Any]:
    """An array of an `.npz`, read where it is looked at if it lies there uncompressed. Nothing in it is executed.

    What its header says is compared with what there is before any room is made for it.

    Raises:
        ValueError: it is damaged, or no array of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            info = archive.getinfo(f"{name}.npy")
            shape, by_columns, dtype = _read_header(member)
            count = math.prod(map(int, shape))
            told = member.tell() + count * dtype.itemsize
            if dtype.kind not in "biuf":
                raise ValueError(f"{name} is {dtype} {list(shape)}, no plain numbers")
            if min(shape, default=0) < 0 or told != info.file_size:
                raise ValueError(f"{name} is said to be {dtype} {list(shape)}, but has {info.file_size} bytes")
            if info.compress_type == zipfile.ZIP_STORED and count:
                place = _place(path, info) + member.tell()
                return np.memmap(path, dtype, "r", place, shape, "F" if by_columns else "C")
            member.seek(0)
            return np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:  # damage makes NumPy raise all kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged or of another kind: {reason}") from error


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is stored by columns, and kind of numbers of an array; the file stands at its data then."""
    first = np.lib.format.read_magic(member) == (1, 0)
    return (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(member)


def _place(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return file.tell() + int(name) + int(extra)
