"""Image files: which there are in a folder, and their pixels.

Letters: `c` channels, `h w` pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from disa_framework.data.indexed import DamagedFileError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_GRAY = ("1", "L", "LA", "La")
_NO_IMAGES = "__MACOSX"  # what macOS packs into archives beside the files


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems and editors put beside those of the user."""
    return name.startswith(".") or name == _NO_IMAGES


def find_images(folder: str | Path) -> list[str]:
    """Images in a folder and below it, sorted folder by folder; hidden files and folders are passed over.

    Links are followed, to each folder once, so that they may lead back.
    """
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [os.path.join(parent, n) for n in names if n.lower().endswith(SUFFIXES) and not is_hidden(n)]
    return sorted(found, key=os.path.split)


def _raise(error: OSError) -> None:
    raise error


def any_in_color(files: Sequence[str]) -> bool:
    """Whether a file is in color; what cannot be read does not count. Files are opened up to the first in color."""
    from PIL import Image

    for file in files:
        try:
            with Image.open(file) as image:
                if not _is_gray(image):
                    return True
        except Exception:  # it is named when its pixels are read
            continue
    return False


def read_pixels(file: str, size: int | None = None, in_color: bool = True) -> Tensor:
    """An image, uint8 `[3, h, w]`, or `[1, h, w]` where neither it nor `in_color` asks for color.

    Args:
        file: its path.
        size: `h` and `w` that it is cropped to by `center_crop`; none to take it as it is.
        in_color: whether gray becomes color.

    Raises:
        DamagedFileError: naming the file.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits: Pillow would clip them; as of color, the upper 8 are kept
                levels = np.asarray(image)
                if image.mode == "I" and not (levels.min() >= 0 and (levels.max() == 0 or 255 < levels.max() < 2**16)):
                    raise ValueError(f"its levels are {levels.min()} to {levels.max()} in 32 bits: save 8 or 16 bits")
                whole = Image.fromarray((levels >> 8).astype(np.uint8))
            elif (
                image.mode == "P"
            ):  # its colors may be transparent, which Pillow loses with a warning on the way to RGB
                whole = image.convert("RGBA")
            elif image.mode == "F":
                raise ValueError("its pixels are floating-point numbers")
            else:
                whole = image
            whole = whole.convert("RGB" if in_color or not _is_gray(whole) else "L")
            pixels = np.array(whole if size is None else center_crop(whole, size))
    except Exception as error:  # damage makes Pillow raise all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(f"{file} is damaged or not an image: {reason}") from error
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def center_crop(image: Image, size: int) -> Image:
    """The square of `size` pixels in the middle of an image, whose shorter side becomes `size`.

    As ADM does it (Dhariwal and Nichol, arXiv 2105.05233): halved by boxes while the shorter side is at least
    twice the size, then resized bicubically, which keeps large images from aliasing.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _is_gray(image: Image) -> bool:
    return image.mode in _GRAY or image.mode.startswith("I")
