"""`disa-evaluate`, and `disa-predict` that measures what it draws: the same figure whichever way images come."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from disa_framework.cli.evaluate import evaluate
from disa_framework.cli.predict import predict
from disa_framework.data.archive import Pixels, write_archive
from disa_framework.data.image_files import ImageFiles
from disa_framework.data.reading import Reading
from disa_framework.metrics import to_uint8
from disa_framework.metrics.evaluation import Comparison, make_reference
from disa_framework.metrics.evaluation import evaluate as measure
from disa_framework.toy.classifier import DigitsFeatures
from disa_framework.toy.digits import DigitsData

ROOT = Path(__file__).parent.parent
CPU = ["--trainer.accelerator", "cpu"]
QUIET = [*CPU, "--num_workers", "0", "--trainer.enable_progress_bar", "false"]
DIGITS = ["--features", "DigitsFeatures", *QUIET]
PIXELS = ["--features", "tests.evaluated.Pixels", *QUIET]
DRAW = ["--config", "mixture/default", *CPU, "--trainer.enable_progress_bar", "false", "--schedule", "Constant",
        "--schedule.steps", "2", "--num_images", "40", "--batch_size", "16"]  # fmt: skip


def write_files(folder: Path, images: Pixels) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze(-1)).save(folder / f"{number:06}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits: 200 training images, and 80 held-out samples in every form."""
    place = tmp_path_factory.mktemp("evaluate")
    data = DigitsData("plain")
    real = data.reference_images()[:200].permute(0, 2, 3, 1).numpy()
    samples = to_uint8(data.val_dataset().tensors[0])[:80].permute(0, 2, 3, 1).numpy()
    write_files(place / "real", real)
    np.savez(place / "real.npz", real)
    write_files(place / "flat", samples)
    Image.fromarray(np.zeros((90, 90), np.uint8)).save(place / "flat/grid.png")
    (place / "flat/.000001.png.7.tmp").write_bytes(b"half an image")
    for part in range(4):
        write_files(place / f"nested/{part:05}/samples", samples[20 * part : 20 * (part + 1)])
    (place / "packed").mkdir()
    write_archive(place / "packed/samples.npz", iter(samples), 80, [0] * 80)
    np.savez(place / "adm.npz", samples)
    np.savez_compressed(place / "compressed.npz", arr_1=np.zeros(80), arr_0=samples)
    return place


@pytest.fixture(scope="module")
def figures(place: Path) -> dict[str, Any]:
    """What the samples have, measured against images."""
    return evaluate([str(place / "flat"), "--reference", str(place / "real"), "--precision_recall", "true", *DIGITS])


def only_figures(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, float)}


def test_the_settings_are_told_with_the_figures(place: Path, figures: dict[str, Any]) -> None:
    assert list(only_figures(figures)) == ["fid", "inception_score", "inception_score_std", "precision", "recall"]
    assert figures["images"] == 80 and figures["reference"] == str(place / "real") and figures["resizing"] == "none"
    assert figures["features"].endswith("DigitsFeatures") and len(figures["features_sha256"]) == 64


@pytest.mark.parametrize("samples", ["nested", "packed", "packed/samples.npz", "adm.npz", "compressed.npz"])
def test_images_are_the_same_in_every_form(samples: str, place: Path, figures: dict[str, Any]) -> None:
    options = ["--reference", str(place / "real.npz"), "--precision_recall", "true", "--count", "80", *DIGITS]
    found = evaluate([str(place / samples), *options, "--batch_size", "31"])
    assert only_figures(found) == pytest.approx(only_figures(figures), rel=1e-5)


def test_a_statistics_file_gives_the_figure_of_its_images(
    place: Path, tmp_path: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = tmp_path / "new/real.npz"
    assert evaluate(["--make-reference", str(place / "real"), "--reference", str(statistics), *DIGITS]) == {}
    assert f"statistics of 200 images: {statistics}" in capsys.readouterr().out
    found = evaluate([str(place / "flat"), "--reference", str(statistics), *DIGITS])
    assert found["fid"] == pytest.approx(figures["fid"], rel=1e-6)
    # ADM publishes statistics and some of their images in one file.
    with np.load(statistics) as known, np.load(place / "real.npz") as images:
        np.savez(tmp_path / "both.npz", arr_0=images["arr_0"][:100], mu=known["mu"], sigma=known["sigma"])
    both = [str(place / "flat"), "--reference", str(tmp_path / "both.npz"), *DIGITS]
    assert evaluate(both)["fid"] == found["fid"]
    more = evaluate([*both, "--precision_recall", "true"])
    assert more["fid"] == found["fid"] and 0 < more["recall"] <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_figures(place: Path, figures: dict[str, Any]) -> None:
    options = [
        "--reference",
        str(place / "real"),
        "--precision_recall",
        "true",
        *DIGITS,
        "--trainer.accelerator",
        "gpu",
    ]
    assert only_figures(evaluate([str(place / "flat"), *options])) == pytest.approx(only_figures(figures), rel=1e-3)


def test_a_reference_is_cropped_on_request(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    for file in sorted((place / "real").iterdir()):
        wide = np.pad(np.array(Image.open(file)), ((0, 0), (3, 3)))
        Image.fromarray(wide).save(folder / file.name)
    options = [str(place / "real"), "--reference", str(folder), *DIGITS]
    assert abs(evaluate([*options, "--image_size", "8"])["fid"]) < 1e-4
    with pytest.raises(ValueError, match="uint8"):
        evaluate(options)


@pytest.mark.parametrize(
    ("first", "others"), [("L", "RGB"), ("RGB", "L"), ("L", "LA"), ("I;16", "RGB"), ("1", "P"), ("CMYK", "L")]
)
def test_gray_files_among_those_in_color_are_color(first: str, others: str, tmp_path: Path) -> None:
    for i in range(6):
        mode = others if i else first
        image = Image.fromarray(np.full((9, 8), 65535, np.uint16)) if mode == "I;16" else Image.new("RGB", (8, 9))
        name = f"{i}.jpg" if mode == "CMYK" else f"{i}.png"
        (image if mode == "I;16" else image.convert(mode.replace("LA", "L")).convert(mode)).save(tmp_path / name)
    images = ImageFiles(tmp_path)
    channels = 1 if {first, others} <= {"L", "LA"} else 3
    assert {images[i].shape for i in range(6)} == {(channels, 9, 8)}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/000000.png", "__MACOSX/a.png", "._000000.png", "a/.b/c.png"])
def test_hidden_files_are_not_counted(hidden: str, place: Path, tmp_path: Path) -> None:
    with np.load(place / "adm.npz") as archive:
        write_files(tmp_path / "drawn", archive["arr_0"][:9])
    (tmp_path / "drawn" / hidden).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "drawn" / hidden).write_bytes((tmp_path / "drawn/000000.png").read_bytes())
    assert len(ImageFiles(tmp_path / "drawn")) == 9


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_it_is_called_from_python(place: Path, tmp_path: Path, figures: dict[str, Any]) -> None:
    comparison = Comparison(str(tmp_path / "real.npz"), DigitsFeatures())
    reading = Reading(num_workers=0, trainer={"accelerator": "cpu", "enable_progress_bar": False})
    assert make_reference(place / "real", comparison, reading) == 200
    found = measure(place / "flat", comparison, reading, count=80)
    assert found is not None and found["fid"] == pytest.approx(figures["fid"], rel=1e-6)


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """Starts a program away from the checkout, as the head of a group of processes."""
    program = [str(Path(sys.executable).with_name(args[0])), *args[1:]]
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    return subprocess.Popen(
        program, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    process = start(*args, cwd=cwd)
    out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(args, process.returncode, out, errors)


def test_two_processes_one_without_images_give_one_figure(place: Path, tmp_path: Path, figures: dict[str, Any]) -> None:
    options = ["--reference", str(place / "real"), "--precision_recall", "true", *DIGITS, "--batch_size", "80"]
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = run("disa-evaluate", str(place / "flat"), *options, *ranks, "--output", "deep/figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "deep/figures.json").read_text())
    assert only_figures(written) == pytest.approx(only_figures(figures), rel=1e-6)
    assert done.stdout.count("fid ") == 1 and "warn" not in done.stderr.lower()


@pytest.mark.parametrize(("name", "arguments"), [("RANK", ["flat"]), ("LOCAL_RANK", ["--make-reference", "flat"])])
def test_a_rank_in_the_environment_does_not_silence_a_process_that_is_alone(
    name: str, arguments: list[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    reference, output = tmp_path / "new.npz" if arguments[1:] else place / "real.npz", tmp_path / "f.json"
    done = run("disa-evaluate", *arguments, f"--reference={reference}", *DIGITS, f"--output={output}", cwd=place)
    assert done.returncode == 0 and reference.exists(), done.stderr
    if arguments[1:]:
        assert "statistics of 80 images" in done.stdout
    else:
        assert "fid " in done.stdout and json.loads(output.read_text())["fid"] > 0


def test_two_processes_that_were_killed_leave_nothing_in_the_way(place: Path, tmp_path: Path) -> None:
    options = ["--reference", str(place / "adm.npz"), "--features", "tests.evaluated.Waiting", *QUIET]
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--batch_size", "8", "--output", "figures.json"]
    command = ["disa-evaluate", str(place / "flat"), *options, *ranks]
    with start(*command, cwd=tmp_path) as killed:
        deadline = time.monotonic() + 120
        while not (tmp_path / "begun").exists():
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(killed.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
    (tmp_path / "go").touch()
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    alone = evaluate([str(place / "flat"), "--reference", str(place / "adm.npz"), *PIXELS])
    assert only_figures(json.loads((tmp_path / "figures.json").read_text())) == pytest.approx(only_figures(alone))


def test_a_damaged_file_ends_all_processes_and_is_named(place: Path, tmp_path: Path) -> None:
    with np.load(place / "adm.npz") as archive:
        folder = write_files(tmp_path / "drawn", archive["arr_0"])
    damaged = folder / "000079.png"  # the second process reads it
    damaged.write_bytes(damaged.read_bytes()[:60])
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--batch_size", "40"]
    began = time.monotonic()
    done = run("disa-evaluate", "drawn", "--reference", str(place / "real.npz"), *DIGITS, *ranks, cwd=tmp_path)
    assert done.returncode != 0 and time.monotonic() - began < 120
    assert "disa-evaluate: error: drawn/000079.png is damaged" in done.stderr and "Traceback" not in done.stderr


# --- what cannot be measured --------------------------------------------------------------------------------


def broken(place: Path, tmp_path: Path) -> dict[str, Path]:
    """What is wrong, by name."""
    (tmp_path / "empty").mkdir()
    with np.load(place / "adm.npz") as archive:
        digits = archive["arr_0"]
    odd = write_files(tmp_path / "odd", digits[:5])
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(odd / "000003.png")
    color = write_files(tmp_path / "color", digits[:5])
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(color / "000004.png")
    short = write_files(tmp_path / "short", digits[:5])
    (short / "000002.png").write_bytes((short / "000002.png").read_bytes()[:60])
    write_files(tmp_path / "one", digits[:1])
    np.savez(tmp_path / "keys.npz", images=digits)
    np.savez(tmp_path / "floats.npz", digits / 255.0)
    (tmp_path / "cut.npz").write_bytes((place / "adm.npz").read_bytes()[:500])
    np.savez(tmp_path / "two.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "fits.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "nan.npz", mu=np.zeros(64), sigma=np.full((64, 64), np.nan))
    packed = bytearray((place / "compressed.npz").read_bytes())
    packed[2000:2100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(packed)
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("samples", "reference", "message"),
    [
        ("empty", "fits.npz", r"no images \(.png, .jpg, .* in .*empty"),
        ("nowhere", "fits.npz", "no folder or file at .*nowhere"),
        ("odd", "fits.npz", "000003.png has 8x9 pixels, .*000000.png has 8x8: all .* of one size"),
        ("color", "fits.npz", r"\[5, 3, 8, 8\]: must be uint8 \[B, 1, 8, 8\]"),
        ("short", "fits.npz", "000002.png is damaged or not an image"),
        ("one", "fits.npz", "1 image cannot be measured"),
        ("keys.npz", "fits.npz", r"keys.npz lacks arr_0, holds \['images'\]"),
        ("floats.npz", "fits.npz", r"floats.npz is float64 \[80, 8, 8, 1\]: must be uint8"),
        ("cut.npz", "fits.npz", "cut.npz is no .npz archive, or is cut short"),
        ("flat", "two.npz", "two.npz holds statistics of 2 features, DigitsFeatures gives 64"),
        ("flat", "keys.npz", r"keys.npz is no .*lacks \['mu', 'sigma'\], holds \['images'\]"),
        ("flat", "nan.npz", "nan.npz holds NaN or infinity"),
        ("damaged.npz", "fits.npz", "damaged.npz is damaged"),
        ("flat", "nowhere.npz", "nowhere.npz"),
        ("flat", "empty", "no images .* in .*empty"),
        ("flat", None, "give the reference to compare with"),
    ],
)
def test_what_cannot_be_measured_is_named(
    samples: str, reference: str | None, message: str, place: Path, tmp_path: Path
) -> None:
    found = broken(place, tmp_path)
    against = [] if reference is None else ["--reference", str(found.get(reference, reference))]
    with (
        pytest.raises((ValueError, OSError), match=message) as error,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("warnings.warn", lambda *_, **__: None)  # that five images are few
        evaluate([str(found.get(samples, place / samples)), *against, *DIGITS])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "81"], "flat holds 80 images, not 81"),
        (["--inception", "weights.pth"], "either inception, .* or features"),
        (["--make-reference", "real"], "the images to measure, .* or those to --make-reference of"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--output", "."], "is a folder: give the path of a file"),
        (["--output", "fits.npz/f.json"], "fits.npz"),
        (["--reference", "fits.npz", "--precision_recall", "true"], "fits.npz holds no images, which precision"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(place, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ImageFiles, "__getitem__", None)  # nothing is measured before it is refused
    with pytest.raises((ValueError, OSError), match=message):
        evaluate([str(place / "flat"), "--reference", "fits.npz", *options, *DIGITS])
    with pytest.raises(ValueError, match="to which file"):
        evaluate(["--make-reference", "real", "--reference", "folder", *DIGITS])
    assert not list(tmp_path.glob("*.json"))


# --- while images are drawn ---------------------------------------------------------------------------------


def test_images_are_measured_while_they_are_drawn_and_none_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predict([*DRAW, "--output", "reference", "--seed", "1"])
    predict([*DRAW, "--output", "kept"])
    kept = evaluate(["kept", "--reference", "reference", "--precision_recall", "true", *PIXELS])
    options = ["--format", "none", "--evaluate.reference", str(tmp_path / "reference"),
               "--evaluate.precision_recall", "true", "--evaluate.features", "tests.evaluated.Pixels"]  # fmt: skip
    folder = predict([*DRAW, "--output", "one", *options])
    done = run("disa-predict", *DRAW, "--output", "two", *options, "--trainer.devices", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    for found in (one, two):
        seconds = found.pop("seconds_per_image")
        assert only_figures(found) == pytest.approx(only_figures(kept), rel=1e-6) and seconds > 0
    assert one["images"] == 40 and one["identity"] == two["identity"]
    assert [file.name for file in folder.path.iterdir()] == ["evaluation.json"]


def test_images_are_either_kept_or_measured(tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "drawn")]
    with pytest.raises(ValueError, match=r"give --evaluate\.reference and --format none together"):
        predict([*DRAW, *output, "--evaluate.reference", "r.npz", "--evaluate.features", "tests.evaluated.Pixels"])
    with pytest.raises(ValueError, match=r"give --evaluate\.reference and --format none together"):
        predict([*DRAW, *output, "--format", "none"])
    assert not (tmp_path / "drawn").exists()


def test_classes_are_drawn_in_order_with_so_many_images_each(tmp_path: Path) -> None:
    options = [
        "--config", "mixture/default", "--model.num_classes", "5", "--schedule", "Constant", "--schedule.steps", "2",
        "--labels", "[4, 0, 2]", "--each", "3", "--format", "npz", "--output", str(tmp_path),
        *CPU, "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    folder = predict(options)
    with np.load(folder.archive) as archive:
        assert archive["arr_1"].tolist() == [4, 4, 4, 0, 0, 0, 2, 2, 2]
    with pytest.raises(ValueError, match="3 classes with 3 images each are 9 images, not 10"):
        predict([*options, "--num_images", "10"])


# --- what is shown ------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/evaluation.md").read_text()
COMMANDS = re.findall(r"^    (disa-\w+ .*)$", PAGE.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *args = shlex.split(line)
    with pytest.raises(SystemExit) as stop:
        {"disa-evaluate": evaluate, "disa-predict": predict}[name]([*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate(["--help"])
    assert "examples:\n  disa-evaluate drawn --reference" in capsys.readouterr().out
