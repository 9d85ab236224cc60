"""How do time and memory grow with the batch, the stages and the tokens?

    python -m benchmarks.scaling [--axes batch stages tokens]

A small MAR with random weights draws with guidance, each case in a process of its own with one thread. Seconds of the
processor, those of its matrix products and attention alone, in the same order, and the peak of resident memory over
that with the weights alone. Then the exponent with which each grows along the axis, over all cases (least squares of
the logarithms) and over the last two. What grows faster than products and attention does so without need.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.measure.floor import Recorder, replaying
from disa_framework.models import MAR
from disa_framework.runtime.memory import peak_memory
from disa_framework.runtime.products import use_fast_products
from disa_framework.schedules import Constant

CPU = torch.device("cpu")
STEPS = 4
TITLES = ("seconds", "products alone", "MiB over weights")


class Case(NamedTuple):
    """What is drawn."""

    batch: int
    stages: int
    tokens: int


AXES = {
    "batch": [Case(batch, 16, 256) for batch in (1, 4, 16, 64)],
    "stages": [Case(4, stages, 256) for stages in (8, 32, 128, 256)],
    "tokens": [Case(1, 16, tokens) for tokens in (64, 256, 1024, 4096)],
}


def measure(case: Case) -> tuple[float, float, float]:
    """Seconds, seconds of the products alone, and MiB over those of the weights, in this process."""
    torch.set_num_threads(1)
    _drawing(Case(1, 2, 16))[1]()  # libraries take some memory when they are first used
    model, draw = _drawing(case)
    held, peak = (peak_memory(CPU, run) for run in (lambda: None, draw))
    assert held and peak, "the peak is known on Linux alone"
    seconds = _seconds(draw)
    with Recorder((*model.parameters(), *model.buffers())) as recorder:
        draw()
    with torch.inference_mode():
        return seconds, _seconds(replaying(recorder.calls, CPU)), (peak - held) / 2**20


def _drawing(case: Case) -> tuple[MAR, Callable[[], object]]:
    """The model, and what draws with it."""
    model = MAR(
        latent_size=math.isqrt(case.tokens), latent_channels=4, encoder_width=128, encoder_depth=2, encoder_heads=4,
        decoder_width=128, decoder_depth=2, decoder_heads=4, head_depth=2, head_width=128,
    ).eval()  # fmt: skip
    use_fast_products(model)
    sampling = SamplingConfig(Constant(STEPS), num_stages=case.stages, guidance=Guidance(3.0))
    return model, partial(generate, model, torch.arange(case.batch), sampling)


def _seconds(run: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    run()
    return time.process_time() - start


def exponents(sizes: Sequence[int], found: Sequence[float]) -> str:
    """With which what was found grows with the sizes, over all, and over the last two."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, found))
    over_all = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    return f"{over_all:.2f}; {(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f}"


def table(axis: str) -> Iterator[str]:
    """Lines of the table of an axis."""
    cases, titles, found = AXES[axis], (*Case._fields, *TITLES), []
    yield f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for case, figures in zip(cases, processes.map(measure, cases), strict=True):
            found.append(figures)
            seconds, alone, mib = figures
            yield f"| {' | '.join(f'{size:,}' for size in case)} | {seconds:.2f} | {alone:.2f} | {mib:,.0f} |"
    sizes = [getattr(case, axis) for case in cases]
    grown = [exponents(sizes, column) for column in zip(*found, strict=True)]
    yield f"| exponent of {axis} | | | {' | '.join(grown)} |"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    options = parser.parse_args(args)
    print(f"{STEPS} steps at every stage, one thread, torch {torch.__version__}")
    for axis in options.axes:
        for line in table(axis):
            print(line, flush=True)


if __name__ == "__main__":
    main()
