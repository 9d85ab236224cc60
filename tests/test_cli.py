"""The commands, run as people run them."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.cli import start
from disa_framework.cli.app import app
from disa_framework.cli.bench import bench
from disa_framework.cli.common import find_config
from disa_framework.cli.diagnose import diagnose
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.hub.checkpoint import load_weights, write_checkpoint
from disa_framework.models import MAR
from disa_framework.schedules import Linear, PerStage, StepSchedule
from disa_framework.solvers import DDIM, DDPM, Spaced
from disa_framework.tokenizers import Autoencoder
from disa_framework.toy.mixture import MixtureAR

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(p.relative_to(ROOT / "configs").with_suffix("")) for p in (ROOT / "configs").rglob("*.yaml"))
MIXTURE = ["--config", "mixture/default", "--trainer.enable_progress_bar", "false"]
TINY = {
    "latent_size": 8, "latent_channels": 1, "patch_size": 2, "num_classes": 10, "encoder_width": 16, "encoder_depth": 1,
    "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "head_depth": 1, "head_width": 16,
    "buffer_size": 2, "diffusion_batch_mul": 1,
}  # fmt: skip


def program(name: str) -> str:
    """The installed program."""
    return str(Path(sys.executable).with_name(name))


def run(name: str, *args: str, cwd: Path, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program away from the checkout."""
    return subprocess.run(
        [program(name), *args], cwd=cwd, capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit
    )


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png") if path.name != "grid.png"}


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MAR trained for a few steps by the command itself, and its folder."""
    folder = tmp_path_factory.mktemp("fit")
    model = folder / "tiny.yaml"
    content = yaml.safe_load(Path(find_config("digits/mar")).read_text())
    content["model"]["init_args"] = TINY
    model.write_text(yaml.safe_dump(content))
    done = run(
        "disa-fit", "--config", "tiny.yaml", "--trainer.max_steps", "6", "--trainer.default_root_dir", "run",
        "--trainer.enable_progress_bar", "false", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_model_is_trained_and_draws_images(digits_run: Path, tmp_path: Path) -> None:
    done = run(
        "disa-predict", "--config", str(digits_run / "tiny.yaml"), "--checkpoint", str(digits_run / "run/last.ckpt"),
        "--schedule", "TwoStage", "--schedule.early", "3", "--schedule.late", "2", "--num_stages", "4",
        "--guidance.scale", "2", "--labels", "[3, 7]", "--num_images", "5", "--batch_size", "2", "--seed", "1",
        "--format", "both", "--grid", "true", "--output", "drawn", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "drawn/samples.json").read_text())
    assert made["asked"] == "Labels(labels=(3, 7), each=None)" and made["budget"] == [3, 3, 2, 2]
    assert made["head_evaluations_per_image"] == 10 and made["seconds_per_image"] > 0
    assert made["identity"]["seed"] == 1 and made["identity"]["sampling"]["guidance"]["scale"] == 2
    assert len(images(tmp_path / "drawn")) == 5
    with np.load(tmp_path / "drawn/samples.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (5, 8, 8, 1) and arrays["arr_1"].tolist() == [3, 7, 3, 7, 3]
        assert np.array_equal(arrays["arr_0"][2, ..., 0], np.array(Image.open(tmp_path / "drawn/000002.png")))
    assert "5 images, 10 head evaluations each" in done.stdout and (tmp_path / "drawn/grid.png").exists()


def test_a_trained_model_is_not_trained_over_by_mistake(digits_run: Path, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (digits_run / "run").iterdir() if path.is_file()}

    before, args = files(), ["--config", str(digits_run / "tiny.yaml")]
    args += ["--trainer.default_root_dir", str(digits_run / "run"), "--trainer.max_steps", "7"]
    safetensors.torch.save_file(load_weights(digits_run / "run/last.ckpt"), tmp_path / "weights.safetensors")
    for more, message in (
        ([], "run holds a trained model: go on with --ckpt_path .*last.ckpt, or"),
        (["--ckpt_path", "lst.ckpt"], "no checkpoint at lst.ckpt"),
        (["--ckpt_path", str(tmp_path / "weights.safetensors")], "has no training to go on with: give a .ckpt"),
        (["--ckpt_path", str(digits_run / "run/last.ckpt"), "--model.head_width", "8"], "it has other shapes"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            fit([*args, *more])
    assert files() == before and set(before) == {"config.yaml", "last.ckpt"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_read_by_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = name.split("/")[-1]
    command = last if last in ("search", "diagnose") else "predict"
    with pytest.raises(SystemExit) as stop:
        getattr(import_module(f"disa_framework.cli.{command}"), command)(["--config", name, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: disa_framework." in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in CONFIGS if "data:" in (ROOT / f"configs/{name}.yaml").read_text()])
def test_every_configuration_with_data_is_read_for_training(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(["--config", name, "--print_config"])
    assert stop.value.code == 0
    assert "decay:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [app, bench, diagnose, fit, predict])
def test_help_explains_every_option(command: Callable[..., object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(["--help_all"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:\n  disa-" in out and " object at 0x" not in out
    assert "--guidance.scale" in out and "--trainer.devices" in out
    assert "disa_framework.schedules.Linear" in out or command is diagnose  # which leaves schedules aside


@pytest.mark.parametrize("command", [app, bench, diagnose, fit, predict])
def test_help_has_the_commands_own_options_alone(
    command: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            command([option])
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    short, whole = (
        {line.split()[0].rstrip(",") for line in out.splitlines() if line.startswith("  --")} for out in shown
    )
    assert "examples:\n  disa-" in shown[0] and short < whole and len(shown[0].splitlines()) < 100
    assert {"--config", "--model"} <= short and "--trainer.devices" not in short
    assert len([option for option in short if "." in option]) <= 2
    sections = {"--guidance", "--trainer", "--evaluate", "--optimization"}
    assert {name for name in whole if "." not in name} - short <= sections


# --- sampling configs -------------------------------------------------------------------------------------

FOUND = SamplingConfig(PerStage((4, 3, 2, 1)), DDIM(), num_stages=4, guidance=Guidance(2.0))


@pytest.fixture
def found(tmp_path: Path) -> str:
    FOUND.save(tmp_path / "best.yaml")
    return str(tmp_path / "best.yaml")


def drawn_with(*options: str, folder: Path) -> dict[str, Any]:
    """The sampling config that two samples were drawn with, as their folder has it."""
    drawn = predict([*MIXTURE, "--num_images", "2", "--output", str(folder / "drawn"), *options])
    return drawn.facts()["identity"]["sampling"]


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ([], {}),
        (["--guidance.scale", "3"], {"guidance": Guidance(3.0)}),
        (["--schedule", "Linear", "--schedule.early", "10"], {"schedule": Linear(10)}),
        (["--schedule.steps", "[5, 5, 5, 5]"], {"schedule": PerStage((5, 5, 5, 5))}),
        (["--solver", "DDPM"], {"solver": DDPM()}),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_sampling_config_is_read_from_a_file_and_single_options_replace_its_parts(
    options: list[str], change: dict[str, Any], first: bool, found: str, tmp_path: Path
) -> None:
    args = [f"--sampling={found}", *options] if first else [*options, "--sampling", found]
    expected = json.loads(json.dumps(replace(FOUND, **change).dump()))
    assert drawn_with(*args, folder=tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no sampling config at"),
        ("model: disa_framework.toy.mixture.MixtureAR", "SamplingConfig has no model"),
        ("schedule: disa_framework.solvers.DDIM", "disa_framework.solvers.DDIM is no StepSchedule"),
        ("schedule: Nonsense", "known are Adaptive, Constant"),
        ("schedule: {class_path: Linear, init_args: {late: 0}}", "stage 0 has 0"),
        ("guidance: {scale: abc}", "must be real number"),
        ("[1, 2", "holds no sampling config"),
        ("schedule: {class_path: os.system, init_args: {command: touch PWNED}}", "os.system is no StepSchedule"),
        ("solver: {class_path: subprocess.Popen, init_args: {args: [touch, PWNED]}}", "subprocess.Popen is no Solver"),
    ],
)
def test_a_file_that_holds_no_sampling_config_is_refused_and_nothing_of_it_is_run(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("it.yaml").write_text(content)
    with pytest.raises((ValueError, OSError), match=message) as error:
        drawn_with("--sampling", "it.yaml", folder=tmp_path)
    assert "it.yaml" in str(error.value) and not Path("PWNED").exists() and not Path("drawn").exists()


def test_a_sampling_config_is_named_on_the_command_line(found: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(f"sampling: {found}")
    with pytest.raises(ValueError, match="not sampling: FILE"):
        drawn_with("--config", str(tmp_path / "it.yaml"), folder=tmp_path)


POPEN = "{class_path: subprocess.Popen, init_args: {args: touch PWNED, shell: true}}"
SYSTEM = "{class_path: os.system, init_args: {command: touch PWNED}}"


@pytest.mark.parametrize("evil", [POPEN, SYSTEM, "{class_path: unittest.__main__.X}"])
@pytest.mark.parametrize("place", [
    "data: {x: EVIL}", "data: EVIL", "optimization: {x: EVIL}", "model: EVIL", "cache: EVIL", "condition: EVIL",
    "writer: EVIL", "solver: {class_path: DDPM, init_args: {grid: EVIL}}", "tokenizer: EVIL",
    "trainer: {profiler: EVIL}", "trainer: {plugins: [EVIL]}", "trainer: {callbacks: [EVIL]}",
    "evaluate: {features: EVIL}",
])  # fmt: skip
def test_nothing_that_a_configuration_names_is_run(
    place: str, evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {predict: ("mixture/default", "--num_images=2"), fit: ("digits/mar", "--trainer.max_steps=0")}
    for command, (base, option) in asked.items():
        Path("it.yaml").write_text(f"config: {find_config(base)}\n{place.replace('EVIL', evil)}\n")
        with contextlib.suppress(SystemExit, ValueError, TypeError):
            command(["--config", "it.yaml", option, "--trainer.default_root_dir=."])
    assert not Path("PWNED").exists()


# --- runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Forty images, drawn in one process without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    return images(predict([*MIXTURE, *FORTY, "--output", str(folder)]).path)


FORTY = ["--num_images", "40", "--batch_size", "4"]


TWO_PROCESSES = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def test_a_killed_run_goes_on_and_redraws_nothing(tmp_path: Path, reference: dict[str, bytes]) -> None:
    command = [program("disa-predict"), *MIXTURE, *FORTY, "--output", "drawn", "--schedule.early", "50"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "drawn"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("0*.png"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {name: (folder / name).stat().st_mtime_ns for name in images(folder)}
    assert 6 <= len(kept) < 40, "the run was to be killed half-way"
    for name in kept:
        Image.open(folder / name).load()
    (folder / ".000039.png.1.tmp").write_bytes(b"half")

    predict([*MIXTURE, *FORTY, "--output", str(folder)])
    assert images(folder) == reference
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(folder.glob(".*"))


def test_a_finished_archive_is_recognised_and_may_grow(tmp_path: Path, reference: dict[str, bytes]) -> None:
    drawn = [*MIXTURE, "--batch_size", "4", "--output", str(tmp_path), "--format", "npz", "--num_images"]
    folder = predict([*drawn, "12"])
    assert folder.facts()["seconds_per_image"] > 0
    kept = [file.read_bytes() for file in (folder.archive, folder.manifest)]
    assert images(tmp_path) == {}
    predict([*drawn, "12"])
    assert [file.read_bytes() for file in (folder.archive, folder.manifest)] == kept
    with pytest.raises(ValueError, match=r"made otherwise \(seed differ"):
        predict([*drawn, "12", "--seed", "5"])
    predict([*drawn, "40"])
    assert images(tmp_path) == {} and folder.packed() == 40
    predict([*drawn, "40", "--format", "png"])
    assert images(tmp_path) == reference and not folder.archive.exists()


PROMPTED = [*MIXTURE, "--model", "tests.prompted.PromptedMixture"]
METADATA = [{"tag": "colors", "prompt": "a red dog"}, {"prompt": "two cats"}, {"prompt": "ein Käfer"}]


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    """Options that draw two images from each of three prompts of GenEval's kind."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in METADATA))
    return ["--prompts", str(file), "--each", "2"]


def files(folder: Path) -> dict[str, bytes]:
    """Those of the prompts, by their place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("0*/**/*") if path.is_file()}


def test_prompts_are_drawn_as_geneval_reads_them(
    prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*PROMPTED, *prompts, "--batch_size", "4", "--output"]
    drawn = files(predict([*args, str(tmp_path / "drawn")]).path)
    samples = [f"0000{p}/samples/000{i}.png" for p in range(3) for i in range(2)]
    assert sorted(drawn) == sorted([*samples, *(f"0000{p}/metadata.jsonl" for p in range(3))])
    assert [json.loads(drawn[f"0000{p}/metadata.jsonl"]) for p in range(3)] == METADATA
    assert len({drawn[name] for name in samples}) == 6

    for lost in ("00001/samples/0001.png", "00002/metadata.jsonl"):  # of the last of two batches
        (tmp_path / "drawn" / lost).unlink()
    kept = {name: (tmp_path / "drawn" / name).stat().st_mtime_ns for name in samples if "1/samples/0001" not in name}
    predict([*args, str(tmp_path / "drawn")])
    assert files(tmp_path / "drawn") == drawn
    assert {name: (tmp_path / "drawn" / name).stat().st_mtime_ns for name in kept} == kept

    # One process has no work: six images are one batch.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    one = [*PROMPTED, *prompts, "--output", str(tmp_path / "one")]
    done = run("disa-predict", *one[:-1], "two", *TWO_PROCESSES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(predict(one).path)


def test_prompts_of_a_text_file_and_more_images_of_each(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("two cats\n\na red dog\n")
    args = [*PROMPTED, "--prompts", str(tmp_path / "prompts.txt"), "--batch_size", "2", "--output", str(tmp_path)]
    few = files(predict([*args, "--each", "1", "--format", "npz"]).path)
    assert few == {f"0000{p}/metadata.jsonl": json.dumps({"prompt": text}).encode() + b"\n"
                   for p, text in enumerate(["two cats", "a red dog"])}  # fmt: skip
    folder = predict([*args, "--each", "3", "--num_images", "6"])
    assert len(folder.finished()) == 6 and len(files(tmp_path)) == 8
    (tmp_path / "prompts.txt").write_text("two dogs\na red dog\n")
    with pytest.raises(ValueError, match=r"made otherwise \(condition differ"):
        predict(args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_images", "5"], "3 prompts with 2 images each are 6 images, not 5: leave --num_images out"),
        (["--labels", "[0]"], "give either --prompts or --labels"),
        (["--model", "MixtureAR"], "MixtureAR draws classes: give labels, not list"),
        (["--prompts", "nowhere.txt"], "no prompts at nowhere.txt"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(
    options: list[str], message: str, prompts: list[str], tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        predict([*PROMPTED, *prompts, "--output", str(tmp_path / "drawn"), *options])
    assert not (tmp_path / "drawn").exists()


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an autoencoder and of a MAR on its latents, and their configuration."""
    folder = tmp_path_factory.mktemp("latents")
    options: dict[str, Any] = {"channels": 32, "multipliers": [1, 1], "blocks": 1, "latent_channels": 4}
    torch.manual_seed(0)
    mar = {**TINY, "latent_channels": 4, "latent_size": 4}
    torch.save(MAR(**mar).state_dict(), folder / "mar.pth")
    for name in ("vae", "other"):
        write_checkpoint(folder / f"{name}.safetensors", Autoencoder(**options).network.state_dict(), {
            "class_path": "disa_framework.tokenizers.Autoencoder", "init_args": options,
        })  # fmt: skip
    content = {
        "model": {"class_path": "disa_framework.models.MAR", "init_args": mar},
        "tokenizer": {"class_path": "disa_framework.tokenizers.Autoencoder", "init_args": options},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_latents_are_decoded_with_the_autoencoder_that_is_given(latent_run: Path, tmp_path: Path) -> None:
    vae, other = (str(latent_run / f"{name}.safetensors") for name in ("vae", "other"))
    args = ["--config", str(latent_run / "config.yaml"), "--checkpoint", str(latent_run / "mar.pth")]
    args += ["--schedule=Constant", "--schedule.steps=2", "--num_stages=2", "--num_images=2", "--output", str(tmp_path)]
    folder = predict([*args, "--vae", vae])
    assert folder.read([0, 1]).shape == (2, 3, 8, 8)
    (tmp_path / "moved.safetensors").symlink_to(vae)
    predict([*args, "--vae", str(tmp_path / "moved.safetensors")])
    with pytest.raises(ValueError, match=r"made otherwise \(tokenizer differ"):
        predict([*args, "--vae", other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the autoencoder has weights: give them with --vae"),
        (
            ["--tokenizer", "null"],
            "a PNG has 1 or 3 channels, these samples are .4, 4, 4.: give the autoencoder with --vae",
        ),
        (["--tokenizer", "Identity", "--vae", "kl16.ckpt"], "Identity has no weights: leave --vae out"),
        (["--tokenizer", "null", "--vae", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    ],
)
def test_latents_that_cannot_be_decoded_are_refused(
    options: list[str], message: str, latent_run: Path, tmp_path: Path
) -> None:
    args = ["--config", str(latent_run / "config.yaml"), "--checkpoint", str(latent_run / "mar.pth")]
    with pytest.raises((ValueError, OSError), match=message) as error:
        predict([*args, "--output", str(tmp_path / "drawn"), *options])
    assert "\n" not in str(error.value) and not (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "Constant", "--schedule.steps", "0"], "1 to 10000 steps; stage 0 has 0"),
        (["--num_stages", "17"], "num_stages must lie in 1 … 16"),
        (["--labels", "[5]"], "labels must lie in 0 … 0 for this model, got 5"),
        (["--solver", "Euler"], "Euler is for linear flows"),
        (["--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["--guidance.interval", "[0.9, 0.1]"], "0 <= low <= high <= 1"),
        (["--num_images", "0"], "at least 1 sample"),
        (["--writer", "Arrays", "--format", "npz"], "--format npz is for images"),
        (["--labels", "[0]", "--condition", "Labels"], "give either --condition or --labels"),
        (["--schedule", "PerStage", "--schedule.steps", "[3, 2]"], "for 16 stages needs as many step counts, got 2"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message.replace("[", r"\[")):
        predict([*MIXTURE, "--output", str(tmp_path / "drawn"), *options])
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "Nonsense"], "--schedule must be a class, one of .*Constant, Cosine, .*Linear, .*PerStage"),
        (["--model", "my.Missing"], "--model must be a class, one of .*MAR, .*MixtureAR"),
        (["--config", "nowhere"], "no configuration 'nowhere': give the path of a file, or one of .*digits/mar"),
        (["--seed", "abc"], "--seed must be a whole number, got abc"),
        (["--shedule", "Linear"], "unrecognized arguments: --shedule"),
        (["--format", "jpg"], "'npz' or 'both' or 'none' or null, got jpg"),
        (["--writer", "Nonsense"], "--writer must be a class, one of Arrays, Images"),
        (["--condition", "Nonsense"], "--condition must be a class, one of Labels, .*Prompts"),
        (["--attention", "fast"], "--attention must be 'sdpa' or 'flash' or 'auto', got fast"),
        (["--each", "0"], "--each must be a whole number from 1 on or null, got 0"),
    ],
)
def test_a_wrong_option_is_explained(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        predict([*MIXTURE, *options])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.search(message, error)


# --- errors -----------------------------------------------------------------------------------------------


class Broken(MixtureAR):
    """Has a bug in each stage."""

    def propose(self, state: Any, stage: int) -> Any:
        raise ValueError("a bug of mine")


class TornApart(MixtureAR):
    """Has one that a library finds."""

    def propose(self, state: Any, stage: int) -> Any:
        return torch.distributions.Normal(0.0, -1.0, validate_args=True)


@dataclass(frozen=True)
class Picky(StepSchedule):
    """A schedule that checks its option."""

    most: int = 5

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most must be above 0, got {self.most}")

    def compute(self, num_stages: int) -> list[int]:
        return [self.most] * num_stages


@dataclass(frozen=True)
class Lost(StepSchedule):
    """Has another."""

    def compute(self, num_stages: int) -> Any:
        return Path("nowhere").read_text()


def failed(*options: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program prints about an error."""
    args = [*MIXTURE, "--num_images", "2", "--output", str(folder / "drawn"), *options]
    monkeypatch.setattr(sys, "argv", ["disa-predict", *args])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as stop:
        start.predict()
    assert stop.value.code == 1
    return capsys.readouterr().err


REFUSED = [
    ["--num_stages", "99"], ["--ckpt_path", "nowhere.ckpt"], ["--output", "/dev/null/drawn"],
    ["--trainer.devices", "abc"], ["--trainer.devices", "0"], ["--trainer.devices", "-5"],
    ["--trainer.accelerator", "nonsense"], ["--trainer.accelerator", "mps"], ["--trainer.strategy", "deepspeed"],
    ["--trainer.limit_predict_batches", "-3"], ["--trainer.profiler", "none of these"], ["--trainer.max_time", "abc"],
    ["--trainer.max_steps", "-5"], ["--prompts", str(ROOT)],
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_a_user_can_mend_is_one_line_and_a_status(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failed(*options, folder=tmp_path, capsys=capsys, monkeypatch=monkeypatch)
    lines = [line for line in said.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1 and lines[0].startswith("disa-predict: error: ")
    with pytest.raises(Exception, match=r"\w"):  # with its traceback
        failed(*options, "--debug", folder=tmp_path, capsys=capsys, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--model", "tests.test_cli.Broken"], ValueError),
        (["--model", "tests.test_cli.TornApart"], ValueError),
        (["--schedule", "tests.test_cli.Lost"], FileNotFoundError),
    ],
    ids=["model", "model's library", "schedule"],
)
def test_a_bug_of_a_users_own_shows_where_it_is(
    options: list[str],
    error: type[Exception],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(error):
        failed(*options, folder=tmp_path, capsys=capsys, monkeypatch=monkeypatch)


def test_what_a_class_of_a_users_own_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--schedule", "tests.test_cli.Picky", "--schedule.most", "0"]
    said = failed(*options, folder=tmp_path, capsys=capsys, monkeypatch=monkeypatch)
    assert said.strip().splitlines()[-1] == "disa-predict: error: most must be above 0, got 0"


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    count = 500  # whose archive is larger than that, and whose description is not
    args = [*MIXTURE, "--num_images", str(count), "--batch_size", "250", "--output", "drawn"]
    full = run("disa-predict", *args, "--format", "npz", cwd=tmp_path, limit=small_files)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert full.stderr.strip().splitlines()[-1].startswith("disa-predict: error: ")
    folder = tmp_path / "drawn"
    assert len(images(folder)) == count and not list(folder.glob(".*")) and not (folder / "samples.npz").exists()
    predict([*args[:-1], str(folder), "--format", "npz"])
    assert len(images(folder)) == 0 and (folder / "samples.npz").exists()


@pytest.mark.parametrize("damage", ["missing weights", "other size", "nan", "truncated"])
def test_a_checkpoint_that_does_not_fit_is_refused(damage: str, digits_run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "broken.ckpt"
    whole = (digits_run / "run/last.ckpt").read_bytes()
    options = ["--config", str(digits_run / "tiny.yaml"), "--output", str(tmp_path / "drawn")]
    messages = {"missing weights": "give a checkpoint", "other size": "other shapes"}
    messages |= {"nan": "NaN or infinite", "truncated": "damaged"}
    if damage == "truncated":
        checkpoint.write_bytes(whole[: len(whole) // 2])
    if damage == "nan":
        content = torch.load(digits_run / "run/last.ckpt", weights_only=True)
        content["state_dict"]["model.mask_token"].fill_(float("nan"))
        torch.save(content, checkpoint)
    if damage == "other size":
        torch.save(MAR(**{**TINY, "buffer_size": 5}).state_dict(), checkpoint)
    if damage != "missing weights":
        options += ["--ckpt_path", str(checkpoint)]
    with pytest.raises(ValueError, match=messages[damage]):
        predict(options)
    assert not (tmp_path / "drawn").exists()


MINE = """
from dataclasses import dataclass
import torch
from disa_framework.callbacks import SampleWriter
from disa_framework.data.conditions import ConditionReader
from disa_framework.schedules import StepSchedule
from disa_framework.toy.mixture import MixtureAR

@dataclass(frozen=True)
class Halving(StepSchedule):
    first: int = 8
    def compute(self, num_stages):
        return [max(1, self.first >> k) for k in range(num_stages)]

class Voices(MixtureAR):
    def __init__(self):
        super().__init__()
        self.num_classes = 0
    def check_condition(self, condition):
        assert condition["voice"].dtype == torch.float32
    def component_weights(self, condition, batch_size):
        if condition is None:
            return super().component_weights(None, batch_size)
        assert len(condition["text"]) == batch_size
        return condition["voice"].softmax(dim=1)

@dataclass(frozen=True)
class Choir(ConditionReader):
    voices: int = 5
    def read(self, model):
        voice = torch.randn(self.voices, 8, generator=torch.Generator().manual_seed(0))
        return {"voice": voice, "text": ["la"] * self.voices}

@dataclass(frozen=True)
class Sums(SampleWriter):
    suffix = ".txt"
    digits: int = 2
    def prepare(self, samples):
        return samples.flatten(1).sum(dim=1)
    def encode(self, sample):
        return f"{sample.item():.{self.digits}f}".encode()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that draw into a folder, beside a module of somebody's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return [*MIXTURE, "--output", str(tmp_path / "drawn")]


def test_a_schedule_of_somebodys_own_is_found_by_its_path(mine: list[str]) -> None:
    folder = predict([*mine, "--schedule", "mine.Halving", "--num_stages", "4", "--num_images", "1"])
    assert folder.facts()["budget"] == [8, 4, 2, 1]


def test_a_condition_and_a_writer_of_somebodys_own_draw_as_many_samples_as_there_are(mine: list[str]) -> None:
    args = [*mine, "--model", "mine.Voices", "--condition", "mine.Choir", "--condition.voices", "3"]
    folder = predict([*args, "--writer", "mine.Sums", "--writer.digits", "1", "--batch_size", "2"])
    texts = {file.name: file.read_text() for file in folder.path.glob("0*")}
    assert sorted(texts) == ["000000.txt", "000001.txt", "000002.txt"] and len(set(texts.values())) == 3
    assert all(re.fullmatch(r"-?\d+\.\d", text) for text in texts.values())
    assert "voices=3" in folder.facts()["asked"]


def test_what_is_drawn_is_what_generate_returns(tmp_path: Path) -> None:
    args = [*MIXTURE, "--num_images", "5", "--batch_size", "2", "--tokenizer=null", "--writer", "Arrays"]
    folder = predict([*args, "--output", str(tmp_path)])
    sampling = SamplingConfig(Linear(50, 5), DDPM(Spaced(clip=950)), num_stages=16)
    for index, sample in enumerate(generate(MixtureAR(), torch.zeros(5, dtype=torch.long), sampling)):
        assert np.allclose(np.load(folder.file(index)), sample.numpy(), atol=1e-4)


def test_a_notebooks_backend_for_pictures_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    few = ["--schedule", "Constant", "--schedule.steps", "2", "--repeats", "1"]
    done = run("disa-bench", *MIXTURE, *few, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
