"""An `.npz` of images as ADM's evaluator reads it, written and read without holding them all in memory.

50,000 images of 256 by 256 pixels are 10 GB. They are kept uncompressed, as ADM keeps them, so that they can be mapped.
Letters: `B` images, `h w` pixels, `c` channels.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_LOCAL_HEADER = struct.Struct("<4s4xH16xHH")  # of a zip member: signature, compression, lengths of name and extras


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


def open_archive(path: Path) -> Pixels:
    """The images `[B, h, w, c]` of an archive, read where they are looked at.

    Raises:
        ValueError: if `write_archive` has not written it.
    """
    try:
        with path.open("rb") as file:
            signature, compression, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if signature != b"PK\3\4" or compression != zipfile.ZIP_STORED:
                raise ValueError("not an uncompressed .npz")
            file.seek(name + extra, os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            return np.memmap(path, dtype, "r", file.tell(), shape)
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is damaged: delete it") from error
