"""Does a long run hold more and more memory?

    python -m benchmarks.constant_memory [--num_images 2000] [--batch_size 50] [--measure]

Draws images of 8 by 8 pixels with the command disa-predict, a small MAR with random weights and few steps, in a process
of its own on the CPU. Prints its resident memory after each tenth of the images, and by how much it grew from the first
tenth to the end. With --measure it keeps no images and compares their features with a reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa_framework.models import MAR
from disa_framework.tokenizers import Identity
from disa_framework.toy.classifier import DigitsFeatures

_MIB = 2**20
_TENTHS = 10
_MODEL: dict[str, Any] = {
    "latent_size": 8, "latent_channels": 1, "patch_size": 2, "num_classes": 10, "encoder_width": 32, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "head_depth": 1, "head_width": 32,
    "buffer_size": 2,
}  # fmt: skip
_PROGRAM = "from disa_framework.cli.start import predict; predict()"
_MARK = "held"  # begins the lines that the other process prints


class Watched(Identity):
    """Pixels are the latents; prints how many images there were, and the resident memory of the process in MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def decode(self, latents: Tensor) -> Tensor:
        self.images += len(latents)
        print(_MARK, self.images, resident(), flush=True)
        return super().decode(latents)


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def measure(num_images: int, batch_size: int, features: bool) -> list[tuple[int, float]]:
    """Images drawn and MiB held, after each batch."""
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *_options(Path(name), num_images, batch_size, features)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{_MARK} ")]
    return [(int(images), float(mib)) for _, images, mib in lines]


def _options(folder: Path, num_images: int, batch_size: int, features: bool) -> list[str]:
    """Of disa-predict, after writing what it reads."""
    torch.manual_seed(0)
    torch.save(MAR(**_MODEL).state_dict(), folder / "mar.pth")
    config = {
        "model": {"class_path": "disa_framework.models.MAR", "init_args": _MODEL},
        "tokenizer": {"class_path": "benchmarks.constant_memory.Watched"},
        "schedule": {"class_path": "disa_framework.schedules.Constant", "init_args": {"steps": 2}},
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        **{"num_stages": 4, "num_images": num_images, "batch_size": batch_size, "output": str(folder / "drawn")},
    }
    if features:
        F, reference = DigitsFeatures().num_features, folder / "reference.npz"
        np.savez(reference, mu=np.zeros(F), sigma=np.eye(F))
        network = {"class_path": "disa_framework.toy.classifier.DigitsFeatures"}
        config |= {"format": "none", "evaluate": {"reference": str(reference), "features": network}}
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML, too
    return ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "mar.pth")]


def main(args: Sequence[str] | None = None) -> None:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constant_memory", description=description)
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--measure", action="store_true", help="keep no images, and measure them instead")
    options = parser.parse_args(args)
    held = measure(options.num_images, options.batch_size, options.measure)
    tenths = [held[max(0, len(held) * part // _TENTHS - 1)] for part in range(1, _TENTHS + 1)]
    print("| images | resident |\n|---|---|")
    for images, mib in tenths:
        print(f"| {images:,} | {mib:,.1f} MiB |")
    print(f"\ngrowth after the first tenth: {tenths[-1][1] - tenths[0][1]:.1f} MiB")


if __name__ == "__main__":
    main()
