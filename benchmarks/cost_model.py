"""Does the cost model know how long a budget takes that it was not fitted on?

    python -m benchmarks.cost_model [--threads 1] [--rounds 12] [--repeats 1] [--device cpu]

Fits it on MixtureAR (16 tokens, batches of 1,000) and on a MAR as configs/digits/mar.yaml has it, with random weights
(16 tokens, batches of 64), and prints predicted and measured milliseconds of a batch, and the median relative error.
Fits and checks take turns of a few seconds, and the table has medians over the rounds: a machine that others slow down
for a while does so to both.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

import torch
from torch import nn

from disa_framework.measure import measure_cost, measure_latency
from disa_framework.models import MAR
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Cosine, Linear, PerStage, Power, StepSchedule, TwoStage
from disa_framework.toy.mixture import MixtureAR

STAGES = 16
HELD_OUT: tuple[StepSchedule, ...] = (
    Constant(50), Constant(10), Linear(50, 5), Linear(5, 50), Cosine(25, 5), TwoStage(50, 5), Power(60, 2, 3.0),
    PerStage((1, 40) * (STAGES // 2)),
)  # fmt: skip


def digits_mar() -> MAR:
    """With weights that are nowhere zero, as after training."""
    model = MAR(8, 1, 2, 10, 64, 2, 4, 64, 2, 4, 3, 128, buffer_size=4, attn_dropout=0.0, proj_dropout=0.0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def report(name: str, module: ARDiffusionModule, batch_size: int, rounds: int, repeats: int) -> None:
    """Prints the table of one model."""
    labels = torch.zeros(batch_size, dtype=torch.long)
    samplings = [replace(module.sampling, schedule=schedule) for schedule in HELD_OUT]
    seen: list[list[tuple[float, float]]] = []  # predicted and measured milliseconds of a batch
    for _ in range(rounds):
        model = measure_cost(module, labels, batch_size, repeats=repeats)
        measured = measure_latency(module, labels, batch_size, samplings, repeats=repeats)
        seen.append([
            (1e3 * batch_size * model(sampling.budget), 1e3 * batch_size * seconds)
            for sampling, seconds in zip(samplings, measured, strict=True)
        ])  # fmt: skip
        print(
            f"{name}, batches of {batch_size}: {1e3 * batch_size * model.fixed:.2f} ms fixed, "
            f"{1e3 * batch_size * sum(model.backbone) / STAGES:.2f} ms backbone a stage, "
            f"{1e3 * batch_size * sum(model.head) / STAGES:.3f} ms head an evaluation, "
            f"median error {median(map(error, seen[-1])):.1%}"
        )
    medians = [tuple(map(median, zip(*pairs, strict=True))) for pairs in zip(*seen, strict=True)]
    for schedule, pair in zip(HELD_OUT, medians, strict=True):
        label = "PerStage((1, 40, …))" if isinstance(schedule, PerStage) else str(schedule)
        print(f"  {label:38} predicted {pair[0]:8.1f} ms  measured {pair[1]:8.1f} ms  error {error(pair):6.1%}")
    print(f"  median error {median(map(error, medians)):.1%}")


def error(pair: tuple[float, ...]) -> float:
    """Of what was predicted, relative to what was measured."""
    predicted, measured = pair
    return abs(predicted - measured) / measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{options.device}, {options.threads} thread(s), torch {torch.__version__}")
    report("MixtureAR", ARDiffusionModule(MixtureAR()).to(options.device), 1000, options.rounds, options.repeats)
    report("MAR, digits", ARDiffusionModule(digits_mar()).to(options.device), 64, options.rounds, options.repeats)


if __name__ == "__main__":
    main()
