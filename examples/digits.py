"""Annealing on real images: trains a small MAR on handwritten digits and compares schedules.

    python -m examples.digits                               the demo: one training run, four schedules
    python -m examples.digits --all --seeds 0 1 2           every schedule, three training runs
    python -m examples.digits --all --polarity plain …      digits as they are

With random polarity every image is inverted or not, which the first tokens decide for all others. Checkpoints and
images are kept: a second run draws nothing that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import pad

from disa_framework import values
from disa_framework.callbacks import SampleFolder
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.files import write_atomically
from disa_framework.metrics.feature_set import features_of
from disa_framework.metrics.fid import frechet_distance
from disa_framework.sampling.condition import in_turn
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule, TwoStage
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import CAPTIONS, DigitsData, Polarity

CONFIG = "digits/mar"
BASELINE = "constant 50"
SCHEDULES: dict[str, StepSchedule] = {
    BASELINE: Constant(50),
    "constant 25": Constant(25),
    "constant 10": Constant(10),
    "constant 5": Constant(5),
    "constant 3": Constant(3),
    "constant 2": Constant(2),
    "linear 50→5": Linear(50, 5),
    "linear 10→2": Linear(10, 2),
    "reversed 2→10": PerStage(Linear(10, 2).budget(16)[::-1]),
    "2 early, 25 late": TwoStage(2, 25),
    "3 early, 25 late": TwoStage(3, 25),
    "25 early, 2 late": TwoStage(25, 2),
    "25 early, 3 late": TwoStage(25, 3),
}
DEMO = (BASELINE, "constant 5", "linear 50→5", "linear 10→2")


@dataclass(frozen=True)
class Result:
    """One schedule, one training run.

    Attributes:
        distance: Fréchet distance to the training images in the digit classifier's features.
        agreement: share of images that the classifier reads as the class asked for.
        evaluations: head evaluations of an image.
        seconds: of an image.
    """

    distance: float
    agreement: float
    evaluations: int
    seconds: float


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    root = Path(options.output) / options.polarity
    names = tuple(SCHEDULES) if options.all else DEMO
    results: dict[str, list[Result]] = {name: [] for name in names}
    for seed in options.seeds:
        checkpoint = train(root / f"seed{seed}", CONFIG, seed, options.polarity, options.max_steps)
        for number, name in enumerate(names, start=1):
            print(f"\n[{number}/{len(names)}] {name}", flush=True)
            place = root / f"seed{seed}" / slug(name)
            folder = draw(place, CONFIG, SCHEDULES[name], checkpoint, options.num_images)
            results[name].append(measure(folder, options.polarity))
    text = table(results)
    write_atomically(root / "table.md", text.encode())
    print(f"\n{options.polarity} polarity, {len(options.seeds)} training run(s), {options.num_images} images each\n")
    print(text)
    print(f"table     {root / 'table.md'}")
    print(f"pictures  {plot_samples(root / 'samples.png', root / f'seed{options.seeds[0]}', names)}")
    print(f"budgets   {plot_budgets(root / 'budgets.png', names)}")
    print(f"all       {root}/seed*/*/grid.png")


def slug(name: str) -> str:
    """The schedule's name as a folder's."""
    return name.replace(" ", "-").replace(",", "").replace("→", "-to-")


def train(
    folder: Path, config: str, seed: int, polarity: Polarity, max_steps: int | None = None, more: Sequence[str] = ()
) -> Path:
    """Trains unless it has been done, with `more` options of disa-fit, and returns the checkpoint."""
    checkpoint = folder / "last.ckpt"
    finished = folder / "trained"
    if not finished.exists():
        arguments = ["--config", config, "--seed", str(seed), "--data.polarity", polarity]
        arguments += ["--trainer.default_root_dir", str(folder), *more]
        if max_steps:
            arguments += ["--trainer.max_steps", str(max_steps)]
        if checkpoint.exists():
            arguments += ["--ckpt_path", str(checkpoint)]
        fit(arguments)
        finished.touch()
    return checkpoint


def draw(
    folder: Path,
    config: str,
    schedule: StepSchedule,
    checkpoint: Path,
    num_images: int,
    prompts: Sequence[str] = (),
) -> SampleFolder:
    """Draws all classes, or the prompts, in turn with one schedule; all schedules share their noise."""
    steps = f"--schedule={json.dumps(values.dump(schedule))}"
    made_with = [f"--config={config}", f"--ckpt_path={checkpoint}", steps, "--batch_size=250"]
    asked = [f"--num_images={num_images}"]
    if prompts:
        texts = folder.with_suffix(".txt")
        write_atomically(texts, "\n".join(prompts).encode())
        asked = [f"--prompts={texts}", f"--each={math.ceil(num_images / len(prompts))}"]
    return predict([*made_with, *asked, f"--output={folder}", "--grid=true"])


def measure(folder: SampleFolder, polarity: Polarity, prompts: Sequence[str] = CAPTIONS) -> Result:
    """Reads the images back and measures them; `prompts` say which digits they are in turn."""
    made, network = folder.facts(), DigitsFeatures()
    images = folder.read(range(made["num_images"]))
    reference = features_of(network, DigitsData(polarity=polarity).reference_images())
    labels = torch.tensor(in_turn([CAPTIONS.index(prompt) for prompt in prompts], len(images)))
    read = network.logits(network(images)).argmax(dim=1)
    return Result(
        frechet_distance(features_of(network, images), reference),
        (read == labels).double().mean().item(),
        made["head_evaluations_per_image"],
        made["seconds_per_image"],
    )


def table(results: dict[str, list[Result]]) -> str:
    """Markdown; means over training runs, with the standard deviation where there are several."""
    lines = ["| schedule | Fréchet distance | agreement | head evaluations | ms per image | speed-up |"]
    lines += ["|---|---|---|---|---|---|"]
    baseline = statistics.mean(r.seconds for r in results[BASELINE])
    for name, runs in results.items():
        seconds = statistics.mean(r.seconds for r in runs)
        cells = [
            name,
            spread([r.distance for r in runs], 2),
            spread([100 * r.agreement for r in runs], 1) + " %",
            str(runs[0].evaluations),
            f"{1000 * seconds:.1f}",
            f"{baseline / seconds:.1f}×",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_budgets(path: Path, names: Sequence[str], num_stages: int = 16) -> Path:
    """Draws the budgets of the schedules into one figure."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in names:
        SCHEDULES[name].plot(num_stages, axes)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def plot_samples(path: Path, folder: Path, names: Sequence[str], count: int = 20) -> Path:
    """Draws the first images of each schedule, which share their noise, into one figure."""
    figure = Figure(figsize=(11, 0.62 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), squeeze=False)
    for axes, name in zip(rows[:, 0], names, strict=True):
        images = SampleFolder(folder / slug(name)).read(range(count))
        strip = pad(images, (1, 1), value=127).squeeze(1).permute(1, 0, 2).flatten(1)
        axes.imshow(strip, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120)
    return path


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__.split("\n")[0])
    parser.add_argument("--polarity", choices=("random", "plain"), default="random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training run each")
    parser.add_argument("--all", action="store_true", help="every schedule, not only the demo's")
    parser.add_argument("--num_images", type=int, default=1500, help="images drawn with each schedule")
    parser.add_argument("--max_steps", type=int, help="training steps, instead of the configuration's")
    parser.add_argument("--output", default="outputs/digits")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
