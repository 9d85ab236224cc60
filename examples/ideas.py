"""The pictures of docs/ideas.md: an image that fills in while its steps fall, and where grids have a solver look.

    python -m examples.ideas [--output docs]

Draws with the MAR of Fashion-MNIST that comes with the package; some seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from disa_framework import SamplingConfig, unfolding
from disa_framework.hub import load_model
from disa_framework.schedules import Linear
from disa_framework.solvers import DDPM, Grid, Karras, LogSNR, PowerTime, Spaced, VPCosine

LABELS, SHOWN, BLANK = (7, 1, 8), (0, 2, 4, 6, 8, 11, 15), -0.4
STEPS = 8
GRIDS: dict[str, Grid] = {
    "Spaced (published)": Spaced(clip=950), "LogSNR": LogSNR(), "Karras": Karras(), "PowerTime": PowerTime(),
}  # fmt: skip


def plot_filling(path: Path) -> Path:
    """Images after some of the stages, above the steps of each stage."""
    sampling, model = SamplingConfig(Linear(25, 5), DDPM(), 16), load_model("fashion/mar").float()
    filling = list(unfolding(model, torch.tensor(LABELS), sampling, seed=3))
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    places = figure.add_gridspec(2, 1, height_ratios=(len(LABELS), 1.6))
    images, below = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
    for row, axes_of_row in enumerate(images.subplots(len(LABELS), len(SHOWN))):
        for stage, axes in zip(SHOWN, axes_of_row, strict=True):
            latents = filling[stage][row, 0]
            axes.imshow(latents.masked_fill(latents == 0, BLANK).numpy(), cmap="gray", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[], title=f"after stage {stage}" if row == 0 else None)
    axes = below.subplots()
    colours = ["tab:blue" if stage in SHOWN else "lightgray" for stage in range(sampling.stages)]
    axes.bar(range(sampling.stages), sampling.budget, color=colours)
    axes.set(xlabel="stage k", ylabel="diffusion steps T(k)")
    figure.savefig(path, dpi=110)
    return path


def plot_grids(path: Path) -> Path:
    """Where on the way from noise to a clean token each grid has the head evaluated."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, grid in GRIDS.items():
        nodes = grid.nodes(VPCosine(), STEPS)
        places = [math.log(a / s) for a, s in zip(nodes.alphas[:-1], nodes.sigmas[:-1], strict=True)]
        axes.plot(places, [name] * len(places), "o")
    axes.invert_yaxis()
    axes.set(xlabel="log-SNR of the token: noise on the left, nearly clean on the right")
    axes.grid(axis="x", alpha=0.4)
    figure.savefig(path, dpi=110)
    return path


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.ideas", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the pictures")
    folder = parser.parse_args(args).output
    folder.mkdir(parents=True, exist_ok=True)
    print(plot_filling(folder / "filling.png"))
    print(plot_grids(folder / "grids.png"))


if __name__ == "__main__":
    main()
