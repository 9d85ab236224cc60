"""How many operations a host gives a GPU, counted on a simulated one.

    python -m tests.cuda.launches [--models MAR-B FlowAR-L xAR-B]

Where batches are small, a GPU waits for the host to launch one kernel after another, and takes as long as there are
launches. As many blocks as published models have, but narrow ones, as their width launches nothing; random weights, an
image at a time, guidance, and no more stages than are needed to count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from disa_framework import Guidance, generate
from disa_framework.models import MAR, XAR, ARDiffusionModel, FlowAR
from disa_framework.models.graphs import use_graphs
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM, Euler, EulerMaruyama, Solver
from tests.cuda.simulation import simulated_cuda


class Family(NamedTuple):
    """A model with the depth of a published one, and what it is drawn with."""

    make: Callable[[], ARDiffusionModel]
    solver: Solver


HEADS = {"encoder_heads": 2, "decoder_heads": 2}
FAMILIES = {
    "MAR-B": Family(
        partial(
            MAR, latent_size=4, latent_channels=1, encoder_width=16, encoder_depth=12, decoder_width=16,
            decoder_depth=12, head_width=16, head_depth=6, **HEADS,
        ),
        DDPM(),
    ),
    "FlowAR-L": Family(
        partial(
            FlowAR, latent_size=4, scales=(1, 2, 4), width=16, encoder_depth=8, decoder_depth=8, head_width=64,
            head_depth=12, cross_attention=True, **HEADS,
        ),
        Euler(),
    ),
    "xAR-B": Family(partial(XAR, latent_size=4, width=16, encoder_depth=8, decoder_depth=8, **HEADS), EulerMaruyama()),
}  # fmt: skip


def launches(model: ARDiffusionModel, solver: Solver, graphs: bool) -> tuple[float, float]:
    """Of a stage without its rows, and of a row: one evaluation of the head and all that belongs to it.

    All is recorded that is to be, before they are counted.
    """
    stages, (few, many) = max(2, model.min_stages), (4, 6)

    def draw(steps: int) -> int:
        before = device.launches
        generate(
            model, torch.tensor([1]), schedule=Constant(steps), solver=solver, num_stages=stages, guidance=Guidance(2.0)
        )
        return device.launches - before

    with simulated_cuda() as device:
        use_graphs(model.to("cuda:0"), graphs)
        draw(few), draw(many)
        least, most = draw(few), draw(many)
    row = (most - least) / (stages * (many - few))
    return least / stages - few * row, row


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    print("| | launches a stage | a row | a stage, with graphs | a row, with graphs |\n|---|---|---|---|---|")
    for name in parser.parse_args(args).models:
        family = FAMILIES[name]
        model = family.make().eval().requires_grad_(False)
        counts = [count for graphs in (False, True) for count in launches(model, family.solver, graphs)]
        print(f"| {name} | {' | '.join(f'{count:.0f}' for count in counts)} |", flush=True)


if __name__ == "__main__":
    main()
