"""Does feature caching add up with annealing?

    python -m benchmarks.caching [--subjects fashion pixels digits mixture] [--seeds 0 1 2] [--refresh 4] [--share 0.1]
        [--start 4] [--ckpt_path fashion/mar] [--num_stages 16] [--scale 1] [--count 2000]

Draws with constant steps and with annealed ones, both without a cache and with one (Lazy), from

* `fashion`: a trained MAR of Fashion-MNIST, that of the package or another converted file, also with the recipe `best`;

and from three training runs of

* `pixels`: digits with a token a pixel (configs/digits/pixels.yaml): 64 tokens, 32 stages, 4 + 4 blocks;
* `digits`: digits in 16 tokens, 16 stages, 2 + 2 blocks (configs/digits/mar.yaml), where there is little to cache;
* `mixture`: a MAR trained on what MixtureAR draws exactly: 16 tokens, 16 stages, 4 + 4 blocks.

Prints distances (digits: Fréchet distance in the features of a classifier; mixture: sliced Wasserstein distance to the
exact distribution) with their standard deviation over seeds, each of a training run, where there are any, and of the
noise; milliseconds an image, timed in turn; and speed-ups. That of both should be at least 0.8 times the product of the
parts. Training runs are kept.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.files import RECIPES, write_atomically
from disa_framework.hub import load_model
from disa_framework.hub.checkpoint import apply_weights, load_weights
from disa_framework.measure import measure_latency
from disa_framework.metrics.quality import FID
from disa_framework.models import MAR, ARDiffusionModel
from disa_framework.module import ARDiffusionModule, Optimization
from disa_framework.schedules import Constant, Linear
from disa_framework.toy.classifier import DigitsFeatures, FashionFeatures
from disa_framework.toy.digits import DigitsData
from disa_framework.toy.exact import ProjectedMixture
from disa_framework.toy.mixture import MixtureAR
from examples.digits import train

NOISE = 100  # added to a seed: that of what is drawn
BATCH = 250


@dataclass(frozen=True)
class Subject:
    """What is drawn.

    Attributes:
        load: the model of a training run, from a folder and a seed.
        distance: of what a module drew, images `[S, c, h, w]` in [-1, 1].
        classes: to draw in turn.
        samplings: to draw with, by name, beginning with the one that others are compared with.
        count: samples measured.
    """

    load: Callable[[Path, int], ARDiffusionModel]
    distance: Callable[[ARDiffusionModule, Tensor], float]
    classes: int
    samplings: Mapping[str, SamplingConfig]
    count: int


def _digits(config: str) -> Callable[[Path, int], MAR]:
    def load(folder: Path, seed: int) -> MAR:
        checkpoint = train(folder, config, seed, "random")
        model = MAR(**yaml.safe_load(Path(find_config(config)).read_text())["model"]["init_args"])
        apply_weights(model, load_weights(checkpoint), checkpoint)
        return model

    return load


def _mixture(folder: Path, seed: int) -> MAR:
    """Trained on exact samples of the default mixture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MAR(
            latent_size=4, latent_channels=1, num_classes=1, encoder_width=64, encoder_depth=4, encoder_heads=4,
            decoder_width=64, decoder_depth=4, decoder_heads=4, head_depth=3, head_width=128, buffer_size=4,
            attn_dropout=0.0, proj_dropout=0.0, mask_ratio_min=0.01, mask_ratio_std=0.5, position_std=0.5,
            diffusion_batch_mul=2,
        )  # fmt: skip
        weights = folder / "weights.pt"
        if not weights.exists():
            _fit(model, folder)
            torch.save(model.state_dict(), weights)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def _fit(model: MAR, folder: Path) -> None:
    points = MixtureAR().sample_exactly(200_000, torch.Generator().manual_seed(0))
    data = TensorDataset(points.view(-1, 1, 4, 4), torch.zeros(len(points), dtype=torch.int64))
    module = ARDiffusionModule(model, optimization=Optimization(lr=1e-3, warmup_steps=100, decay="cosine"))
    trainer = Trainer(
        max_steps=2000, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=3.0,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=128, shuffle=True))
    folder.mkdir(parents=True, exist_ok=True)


def _frechet(make: Callable[[], FID]) -> Callable[[ARDiffusionModule, Tensor], float]:
    def distance(module: ARDiffusionModule, images: Tensor) -> float:
        quality = make()
        metric = quality.metric(module, None)
        quality.update(metric, images)
        return float(metric.compute())

    return distance


def _wasserstein(module: ARDiffusionModule, latents: Tensor) -> float:
    return ProjectedMixture.of(MixtureAR()).distance(latents.flatten(1))


def _ramp(num_stages: int, steps: int, early: int, late: int) -> dict[str, SamplingConfig]:
    return {
        f"constant {steps}": SamplingConfig(Constant(steps), num_stages=num_stages),
        f"linear {early}→{late}": SamplingConfig(Linear(early, late), num_stages=num_stages),
    }


def _fashion(ckpt_path: str, num_stages: int, scale: float, count: int) -> Subject:
    recipe = replace(SamplingConfig.load(RECIPES / "fashion/mar/best.yaml"), num_stages=num_stages)
    samplings = {**_ramp(num_stages, 50, 50, 5), "recipe best": recipe}
    guided = {name: replace(sampling, guidance=Guidance(scale)) for name, sampling in samplings.items()}
    model = load_model(ckpt_path).float()
    return Subject(lambda folder, seed: model, _frechet(lambda: FID(FashionFeatures())), 10, guided, count)


_DIGITS = _frechet(lambda: FID(DigitsFeatures(), DigitsData(polarity="random")))
SUBJECTS = {
    "pixels": Subject(_digits("digits/pixels"), _DIGITS, 10, _ramp(32, 25, 10, 2), 1000),
    "digits": Subject(_digits("digits/mar"), _DIGITS, 10, _ramp(16, 25, 10, 2), 1500),
    "mixture": Subject(_mixture, _wasserstein, 1, _ramp(16, 50, 50, 5), 5000),
}


@torch.inference_mode()
def examine(subject: Subject, model: ARDiffusionModel, cache: Lazy, seed: int) -> tuple[list[float], list[float]]:
    """Distance, and milliseconds an image, with each of the sampling configs, without the cache and with it."""
    samplings = [replace(sampling, cache=used) for sampling in subject.samplings.values() for used in (None, cache)]
    module = ARDiffusionModule(model, samplings[0], seed=NOISE + seed).eval()
    labels, distances, start = torch.arange(subject.count) % subject.classes, [], time.perf_counter()
    for done, sampling in enumerate(samplings, 1):
        drawing = module.drawing(sampling)
        images = [drawing.draw(labels[indices], indices) for indices in torch.arange(subject.count).split(BATCH)]
        distances.append(subject.distance(module, torch.cat(images)))
        print(f"seed {seed}: {done} of {len(samplings)}, {time.perf_counter() - start:.0f} s", flush=True)
    return distances, [1e3 * seconds for seconds in measure_latency(module, labels[:BATCH], BATCH, samplings)]


def table(name: str, subject: Subject, runs: Sequence[tuple[list[float], list[float]]]) -> str:
    """Markdown."""
    distances, times = (list(zip(*part, strict=True)) for part in zip(*runs, strict=True))
    gains = [[first / other for first, other in zip(times[0], row, strict=True)] for row in times]
    lines = [f"| {name} | distance | ms an image | speed-up |", "|---|---|---|---|"]
    titles = [f"{title}{cached}" for title in subject.samplings for cached in ("", ", cached")]
    lines += [
        f"| {title} | {_spread(row)} | {statistics.mean(ms):.2f} | {_spread(gain)} |"
        for title, row, ms, gain in zip(titles, distances, times, gains, strict=True)
    ]
    lines.append("\nspeed-up of both over the product of the parts:")
    for title, alone, both in zip(titles[2::2], gains[2::2], gains[3::2], strict=True):
        shares = [b / (cache * a) for cache, a, b in zip(gains[1], alone, both, strict=True)]
        lines.append(f"* {title}: {_spread(shares)}")
    return "\n".join([*lines, ""])


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {deviation:.2g}"


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    texts, cache, output = [], Lazy(options.refresh, options.share, options.start), Path(options.output)
    for name in options.subjects:
        subject = SUBJECTS.get(name) or _fashion(options.ckpt_path, options.num_stages, options.scale, options.count)
        models = [subject.load(output / name / f"seed{seed}", seed) for seed in options.seeds]
        runs = [examine(subject, model, cache, seed) for model, seed in zip(models, options.seeds, strict=True)]
        texts.append(table(name, subject, runs))
        print(texts[-1], flush=True)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "caching.md", "\n".join(texts).encode())


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caching", description=(__doc__ or "").split("\n")[0])
    known = ["fashion", *SUBJECTS]
    parser.add_argument("--subjects", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of a training run and of the noise")
    parser.add_argument("--refresh", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--start", type=int, default=4)
    parser.add_argument("--ckpt_path", default="fashion/mar", help="a MAR of Fashion-MNIST: a converted file")
    parser.add_argument("--num_stages", type=int, default=16, help="of that MAR")
    parser.add_argument("--scale", type=float, default=1.0, help="of that MAR's classifier-free guidance")
    parser.add_argument("--count", type=int, default=2000, help="images of that MAR to measure")
    parser.add_argument("--output", default="outputs/caching", help="where training runs are, or are made")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
