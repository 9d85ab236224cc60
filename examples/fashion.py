"""Drawing with the MAR of Fashion-MNIST that comes with the package: the paper's ramps, and the recipes found for it.

    python -m examples.fashion                              the demo: a minute, nothing is trained
    python -m examples.fashion --num_images 5000 --seeds 0 1 2      its table with less noise, three draws

All rows share their noise. Images are kept: a second run draws nothing that is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from disa_framework import SamplingConfig, values
from disa_framework.callbacks import SampleFolder
from disa_framework.cli.predict import predict
from disa_framework.files import write_atomically
from disa_framework.metrics.feature_set import features_of
from disa_framework.metrics.fid import frechet_distance, load_statistics
from disa_framework.schedules import Constant, Linear, StepSchedule
from disa_framework.toy.classifier import FashionFeatures
from disa_framework.toy.fashion import CLASSES
from examples.digits import BASELINE, Result, plot_samples, slug, table

SCHEDULES: dict[str, StepSchedule] = {
    BASELINE: Constant(50),
    "linear 50→5": Linear(50, 5),
    "linear 25→5": Linear(25, 5),
    "linear 10→2": Linear(10, 2),
}
ROWS = {name: f"--schedule={json.dumps(values.dump(schedule))}" for name, schedule in SCHEDULES.items()}
ROWS |= {f"recipe {name}": f"--sampling={name}" for name in ("best", "balanced", "fast")}
"""What each row of the table is drawn with, beside the configuration."""


def main(args: Sequence[str] | None = None) -> None:
    options = _options(args)
    root = Path(options.output)
    results: dict[str, list[Result]] = {name: [] for name in ROWS}
    for seed in options.seeds:
        for number, (name, drawn_with) in enumerate(ROWS.items(), start=1):
            print(f"\n[{number}/{len(ROWS)}] {name}", flush=True)
            results[name].append(measure(draw(root / f"seed{seed}" / slug(name), drawn_with, options.num_images, seed)))
    text = table(results)
    write_atomically(root / "table.md", text.encode())
    first = root / f"seed{options.seeds[0]}"
    print(f"\n{options.num_images} images each, drawn with {len(options.seeds)} seed(s)\n\n{text}")
    print(f"table     {root / 'table.md'}")
    print(f"pictures  {plot_samples(root / 'samples.png', first, list(ROWS))}")
    print(f"steps     {plot_budgets(root / 'budgets.png', first)}")
    print(f"all       {root}/seed*/*/grid.png")


def draw(folder: Path, drawn_with: str, num_images: int, seed: int) -> SampleFolder:
    """Draws all classes in turn."""
    asked = ["--config=fashion/mar", drawn_with, f"--num_images={num_images}", f"--seed={seed}", "--batch_size=250"]
    return predict([*asked, f"--output={folder}", "--grid=true"])


def measure(folder: SampleFolder) -> Result:
    """Reads the images back and measures them."""
    made, network = folder.facts(), FashionFeatures()
    images = folder.read(range(made["num_images"]))
    read = network.logits(network(images)).argmax(dim=1)
    asked = torch.arange(len(images)) % len(CLASSES)
    return Result(
        frechet_distance(features_of(network, images), load_statistics(network.reference)),
        (read == asked).double().mean().item(),
        made["head_evaluations_per_image"],
        made["seconds_per_image"],
    )


def plot_budgets(path: Path, folder: Path) -> Path:
    """Draws head evaluations over the share of the stages, of all rows, into one figure."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in ROWS:
        made = SampleFolder(folder / slug(name)).facts()["identity"]["sampling"]
        budget = values.load(SamplingConfig, made).budget
        places = [k / (len(budget) - 1) for k in range(len(budget))]
        axes.plot(places, budget, ".-", label=f"{name}: {len(budget)} stages, {statistics.mean(budget):.3g} steps each")
    axes.set(
        xlabel="share of the stages",
        ylabel="diffusion steps of a stage",
        yscale="log",
        ylim=(1, 64),
        yticks=(1, 2, 4, 8, 16, 32, 64),
    )
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.fashion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--num_images", type=int, default=1000, help="images of each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the noise")
    parser.add_argument("--output", default="outputs/fashion")
    return parser.parse_args(args)


if __name__ == "__main__":
    main()
