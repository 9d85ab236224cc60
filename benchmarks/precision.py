"""What bfloat16 changes in the images, and what it gains: the models of Fashion-MNIST that come with the package.

    python -m benchmarks.precision [--models mar flowar xar causal] [--count 1000] [--seeds 5 6 7] [--batch_size 250]
    python -m benchmarks.precision --steps 40 [--models mar]

Each draws with its recipe `balanced` in float32 and with weights and drawing in bfloat16, from the same noise. Fréchet
distances, their mean and standard deviation over seeds; milliseconds an image, timed in turn, and their ratio. With
`--steps` each is trained on noise for so many steps instead: milliseconds of the processor for one, with quartiles.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.fashion import FAMILIES
from disa_framework import SamplingConfig
from disa_framework.files import RECIPES
from disa_framework.hub import load_model
from disa_framework.metrics.quality import FID
from disa_framework.module import ARDiffusionModule
from disa_framework.search import Meter
from disa_framework.toy.classifier import FashionFeatures

PRECISIONS = ("32-true", "bf16-true")
TRAINING = ("32-true", "bf16-mixed", "bf16-true")
_ROUNDS = 3
_TRAINED = 128  # images of a step
_WARM_UP = 5


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--count", type=int, default=1000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7], help="of the noise")
    parser.add_argument("--batch_size", type=int, default=250, help="images drawn together")
    parser.add_argument("--steps", type=int, help="of training, which is timed instead")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.steps:
        print(f"| model | {' | '.join(TRAINING)} |\n|{'---|' * (1 + len(TRAINING))}")
        for name in options.models:
            print(f"| {name} | {' | '.join(training(name, precision, options.steps) for precision in TRAINING)} |")
        return
    print("| model | distance in float32 | in bfloat16 | ms in float32 | in bfloat16 | ratio |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        print(row(name, options), flush=True)


def row(name: str, options: argparse.Namespace) -> str:
    """A line of the table."""
    sampling = SamplingConfig.load(RECIPES / f"fashion/{name}/balanced.yaml")
    meters = [_meter(name, sampling, precision, options) for precision in PRECISIONS]
    distances = [[meter.measure(sampling, options.count, seed) for seed in options.seeds] for meter in meters]
    rounds = [[meter.latencies([sampling])[0] for meter in meters] for _ in range(_ROUNDS)]
    full, half = (1e3 * statistics.median(spent) for spent in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b in rounds)
    shown = " | ".join(f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}" for found in distances)
    return f"| {name} | {shown} | {full:.1f} | {half:.1f} | {ratio:.2f} |"


def _meter(name: str, sampling: SamplingConfig, precision: str, options: argparse.Namespace) -> Meter:
    module = ARDiffusionModule(load_model(f"fashion/{name}").float(), sampling, FAMILIES[name].tokenizer)
    trainer = {"accelerator": "cpu", "precision": precision}
    return Meter(module, FID(FashionFeatures()), torch.arange(options.count) % 10, options.batch_size, trainer)


class _Clock(Callback):
    """Notes the processor's time before every step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.marks.append(time.process_time())


def training(name: str, precision: Any, steps: int) -> str:
    """Milliseconds of a step, and between which half of them lie."""
    torch.manual_seed(0)
    module = ARDiffusionModule(load_model(f"fashion/{name}").float(), tokenizer=FAMILIES[name].tokenizer).train()
    data, clock = TensorDataset(torch.randn(_TRAINED, 1, 28, 28), torch.arange(_TRAINED) % 10), _Clock()
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_epochs=_WARM_UP + steps, gradient_clip_val=1.0, callbacks=[clock],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, _TRAINED))
    spent = [1e3 * (end - start) for start, end in pairwise(clock.marks[_WARM_UP:])]
    low, middle, high = statistics.quantiles(spent, n=4)
    return f"{middle:.0f} ({low:.0f} … {high:.0f}) ms"


if __name__ == "__main__":
    main()
