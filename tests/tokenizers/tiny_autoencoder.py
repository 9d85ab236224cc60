"""An autoencoder small enough for tests, and images in folders."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from disa_framework.tokenizers import Autoencoder

TINY: dict[str, Any] = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "latent_channels": 1}


def tiny_autoencoder(**options: Any) -> Autoencoder:
    """Halves width and height; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Autoencoder(**{**TINY, **options})


def write_weights(path: Path) -> Path:
    """The weights of the tiny autoencoder, with the published names."""
    save_file(tiny_autoencoder().network.state_dict(), path)
    return path


def write_images(folder: Path, count: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), side: int = 10) -> Path:
    """As many random images for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (side + i % 3, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder
