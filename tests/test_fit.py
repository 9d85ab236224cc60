"""Training by command: that it can be stopped and gone on with, and that it tells what goes wrong."""

from __future__ import annotations

import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from disa_framework import SamplingConfig
from disa_framework.callbacks import TrainingLines
from disa_framework.callbacks.sample_writers import tiled
from disa_framework.cli.fit import fit
from disa_framework.cli.running import run
from disa_framework.hub import load_model
from disa_framework.metrics.images import to_uint8
from disa_framework.metrics.quality import FID
from disa_framework.models import MAR
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant
from disa_framework.toy.digits import DigitsData
from tests.evaluated import Pixels

MODEL: dict[str, Any] = {
    "latent_size": 8, "latent_channels": 1, "patch_size": 4, "num_classes": 10, "encoder_width": 16, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "head_depth": 1, "head_width": 16,
    "buffer_size": 2, "diffusion_batch_mul": 1, "attn_dropout": 0.2, "proj_dropout": 0.2,
}  # fmt: skip
DIGITS = {"class_path": "DigitsData", "init_args": {"polarity": "plain", "batch_size": 300}}  # five batches an epoch


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning", "ignore:.*in eval mode"
)


class Interrupted(BaseException):
    """What a signal does to a command."""


class At(Callback):
    """Sends a signal in the middle of a step; 0 is an error."""

    def __init__(self, batch: int, number: int = int(signal.SIGTERM), validating: bool = False) -> None:
        self.batch, self.number, self.validating = batch, number, validating

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self.validating:
            self._count(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.validating:
            self._count(trainer)

    def _count(self, trainer: Trainer) -> None:
        self.batch -= 1
        if self.batch == 0 and self.number:
            signal.raise_signal(self.number)
        elif self.batch == 0:
            raise Interrupted


class FiveChannels(LightningDataModule):
    """Latents that no picture shows."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(16, 5, 8, 8), torch.arange(16) % 10), batch_size=2)

    val_dataloader = train_dataloader


class Spoil(Callback):
    """Makes a weight NaN before the step of a batch, or behind it."""

    def __init__(self, batch: int, behind: bool) -> None:
        self.batch, self.behind = batch, behind

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.spoil(pl_module, trainer.global_step + 1, False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.spoil(pl_module, trainer.global_step, True)

    def spoil(self, module: LightningModule, batch: int, behind: bool) -> None:
        if (batch, behind) == (self.batch, self.behind):
            next(module.parameters()).data.fill_(float("nan"))


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Signals raise an exception, as in a command."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def config(folder: Path, *callbacks: dict[str, Any], **options: Any) -> str:
    """The file of a configuration; options of its data and of its trainer."""
    kept = [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}},
        {"class_path": "disa_framework.callbacks.LastCheckpoint"},
    ]
    quiet = {"accelerator": "cpu", "logger": False, "enable_model_summary": False, "default_root_dir": str(folder)}
    limits = {"max_steps": 8, "limit_val_batches": 1, "num_sanity_val_steps": 0, "gradient_clip_val": 1.0}
    content = {
        "model": {"class_path": "MAR", "init_args": {**MODEL, **options.pop("model", {})}},
        "optimization": {"lr": 1e-3, "warmup_steps": 20},
        "data": options.pop("data", DIGITS),
        "schedule": {"class_path": "Constant", "init_args": {"steps": 2}},
        "num_stages": 2,
        "samples": options.pop("samples", 0),
        "validation": options.pop("validation", {}),
        "trainer": {**quiet, **limits, **options, "callbacks": [*kept, *callbacks]},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "it.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def train(folder: Path, *callbacks: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Trains, from `last.ckpt` if there is one, and returns what that holds then."""
    path, last = config(folder, *callbacks, **options), folder / "last.ckpt"
    try:
        fit([f"--config={path}", *([f"--ckpt_path={last}"] if last.exists() else [])])
    except Interrupted:
        assert callbacks
    return dict(torch.load(last, weights_only=True))


def at(batch: int, number: int = int(signal.SIGTERM), validating: bool = False) -> dict[str, Any]:
    """An `At` for a configuration."""
    return {
        "class_path": "tests.test_fit.At",
        "init_args": {"batch": batch, "number": number, "validating": validating},
    }


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Where two checkpoints differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a for place in differences(a[key], b[key], f"{name}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            place for key, pair in enumerate(zip(a, b, strict=True)) for place in differences(*pair, f"{name}/{key}")
        ]
    same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
    return [] if same else [f"{name}: {a} {b}"]


def trained(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """All of it but Lightning's counts."""
    return {name: value for name, value in checkpoint.items() if name != "loops"}


STEPS: dict[str, Any] = {"max_steps": 8, "val_check_interval": 2}
EPOCHS: dict[str, Any] = {"max_steps": -1, "max_epochs": 2}
ADDED: dict[str, Any] = {"max_steps": 5, "accumulate_grad_batches": 2}


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        (STEPS, [[at(3)], [at(5)], [at(2), at(1, int(signal.SIGINT))], [at(7, 0)], [at(1, validating=True)]]),
        (EPOCHS, [[at(4)]]),
        (ADDED, [[at(3)]]),
    ],
    ids=["steps", "epochs", "gradients are added"],
)
def test_a_run_that_was_stopped_and_gone_on_with_equals_one_that_was_not(
    options: dict[str, Any], stops: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    expected = train(tmp_path / "whole", **options)
    for number, several in enumerate(stops):
        for stop in several:
            assert train(tmp_path / str(number), stop, **options)["global_step"] < expected["global_step"]
        assert not differences(trained(train(tmp_path / str(number), **options)), trained(expected)), several


def test_a_run_that_is_made_longer_equals_a_long_one(tmp_path: Path) -> None:
    train(tmp_path / "parts", max_steps=7)
    assert not differences(trained(train(tmp_path / "parts")), trained(train(tmp_path / "whole")))


def test_images_on_disk_are_gone_on_with_where_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        (tmp_path / "images" / name[0]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"images/{name}.png")
    images = {"folder": str(tmp_path / "images"), "image_size": 8, "batch_size": 2, "num_workers": 2}
    data = {"class_path": "ImageFolderData", "init_args": images}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODEL, "latent_channels", 3)
        train(tmp_path / "parts", at(5), data=data)
        assert not differences(
            trained(train(tmp_path / "parts", data=data)), trained(train(tmp_path / "whole", data=data))
        )


def test_the_program_ends_with_the_status_of_the_signal_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MPLBACKEND", "DISA_FIRST_PROCESS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        folder = tmp_path / number.name
        monkeypatch.setattr(sys, "argv", ["disa-fit", "--config", config(folder, at(3, int(number)))])
        with pytest.raises(SystemExit) as end:
            run("fit")
        said = capsys.readouterr().err.splitlines()
        assert end.value.code == status and (folder / "last.ckpt").exists()
        assert len(said) == 1 and said[0].startswith("disa-fit: ") and number.name in said[0]


@pytest.mark.parametrize("behind", [False, True], ids=["loss", "weights"])
def test_weights_that_are_no_numbers_are_not_kept(behind: bool, tmp_path: Path) -> None:
    spoil = {"class_path": "tests.test_fit.Spoil", "init_args": {"batch": 8, "behind": behind}}
    with pytest.raises(ValueError, match="of step 8 became NaN or infinite: train with a smaller"):
        train(tmp_path, spoil)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 5 and all(weight.isfinite().all() for weight in kept["current_model_state"].values())


def test_a_learning_rate_that_is_far_too_high_ends_training_long_before_its_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step 2 became NaN"):
        fit([f"--config={config(tmp_path, max_steps=100000)}", "--optimization.lr=1e30"])


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    before, (soft, hard) = (tmp_path / "last.ckpt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match=r"last.ckpt cannot be written, and is as it was: ") as error:
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and (tmp_path / "last.ckpt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"it.yaml", "config.yaml", "last.ckpt"}


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 8), (60.0, 1)])
def test_a_log_tells_now_and_then_how_far_training_is(
    seconds: float, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("disa_framework.cli.fit.TrainingLines", partial(TrainingLines, seconds=seconds))
    train(tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == lines and all(line.startswith("step ") and " of 8, loss " in line for line in told)
    assert all(line.endswith(" s left") for line in told[:-1])


def pixels(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image))


def test_what_the_validated_weights_draw_is_shown_at_every_validation(tmp_path: Path) -> None:
    watched: dict[str, Any] = {"max_steps": 10, "samples": 12, "logger": None}
    train(tmp_path, at(7), **watched)
    train(tmp_path, **watched)  # goes on
    grids = sorted((tmp_path / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step-0000005.png", "step-0000010.png"]
    model = load_model(tmp_path / "last.ckpt", MAR(**MODEL))  # has the averaged weights
    module = ARDiffusionModule(model, SamplingConfig(Constant(2), num_stages=2))
    with torch.inference_mode():
        drawn = module.draw(torch.arange(12) % 10, torch.arange(12))
    assert torch.equal(pixels(grids[1]), torch.from_numpy(tiled(to_uint8(drawn)))[..., 0])

    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert {image.step for image in curves.Images("samples")} == {5, 10}  # in the order of files, begun in one second
    assert len(curves.Scalars("val_loss")) == 2 and len(curves.Scalars("train_loss")) == 1


def test_the_distance_of_the_validated_weights_is_measured_at_every_second_validation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = {"class_path": "tests.evaluated.Pixels"}
    quality = {"class_path": "FID", "init_args": {"features": network, "reference": {"class_path": "DigitsData"}}}
    watched = {"metric": quality, "samples": 330, "every": 2}
    train(tmp_path, max_steps=6, limit_train_batches=2, validation=watched, logger=None)
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [point.step for point in curves.Scalars("distance")] == [1, 5]
    assert f"{curves.Scalars('distance')[0].value:.4g}" in "".join(capfd.readouterr())
    assert [point.step for point in curves.Scalars("loss/early")] == [1, 3, 5]

    model, measured = load_model(tmp_path / "last.ckpt", MAR(**MODEL)), FID(Pixels(), DigitsData())
    module = ARDiffusionModule(model, SamplingConfig(Constant(2), num_stages=2))
    metric = measured.metric(module, None)
    with torch.inference_mode():
        measured.update(metric, module.draw(torch.arange(330) % 10, torch.arange(330)))
    assert curves.Scalars("distance")[1].value == pytest.approx(metric.compute().item(), rel=1e-4)


def test_samples_that_are_no_images_do_not_stop_training(tmp_path: Path) -> None:
    data = {"class_path": "tests.test_fit.FiveChannels"}
    train(tmp_path, samples=2, val_check_interval=4, data=data, model={"latent_channels": 5})
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "option",
    [
        "accumulate_grad_batches=0", "accumulate_grad_batches=-2", "check_val_every_n_epoch=0", "gradient_clip_val=-1",
        "val_check_interval=0", "min_steps=-1",
    ],
)  # fmt: skip
def test_an_option_of_the_trainer_that_makes_no_sense_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--trainer.{option.partition('=')[0]} must be at least"):
        fit(["--config=digits/mar", f"--trainer.{option}", f"--trainer.default_root_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
