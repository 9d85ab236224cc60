"""`disa-search`, run as people run it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import yaml

from disa_framework import SamplingConfig
from disa_framework.cli.common import find_config
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from tests.models.tiny import TINY, tiny_mar
from tests.search.small import mixture_module, per_stage

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(str(path.relative_to(ROOT / "configs").with_suffix("")) for path in ROOT.glob("configs/*/search.yaml"))
SMALL = [
    "--config", "mixture/search", "--num_stages", "4", "--rungs", "[60, 120]", "--batch_size", "20", "--trials", "8",
    "--space.schedule.groups", "4", "--seeds", "2",
]  # fmt: skip
TINY_DIGITS = {**TINY, "latent_size": 8, "num_classes": 10}


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as lines:
        return list(csv.DictReader(lines))


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed program, away from the checkout."""
    command = [str(Path(sys.executable).with_name("disa-search")), *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_a_search_leaves_what_images_are_drawn_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    per_stage(mixture_module().sampling, 9, 7, 4, 2).save(tmp_path / "mine.yaml")
    chosen = ["--space.guidance", "[1, 2]", "--space.solver+", "DDIM", "--space.num_stages", "[4, 3]"]
    chosen += ["--space.temperature", "[1.1, 1.2]", "--finalists", "1", "--trials", "29", "--calibration.stride", "2"]
    chosen += ["--profile_samples", "100"]
    starts = ["--starts", f"[{tmp_path}/mine.yaml]"]
    found = search([*SMALL, *chosen, *starts, "--evaluations", "24", "--output", str(tmp_path / "found")])
    folder, out = tmp_path / "found", capsys.readouterr().out
    assert "15 of 29 trials are what it begins with" in out
    assert "winner" in out and "baseline" in out and "29 trials: " in out and f"{folder}/best.yaml" in out
    rows = trials(folder)
    ways = ["Calibrated", "Learned", "Calibrated (3 stages)", "Learned (3 stages)"]
    assert [row["start"] for row in rows[:5]] == [f"{tmp_path}/mine.yaml (given)", *ways]
    assert [len(row["budget"].split()) for row in rows[:5]] == [4, 4, 4, 3, 3] and len(rows) == 29
    assert all(float(row["cost"]) <= 24 for row in rows)
    sampled = [row for row in rows if not row["start"]]
    assert len(sampled) == 14 and all(1 <= float(row["guidance"]) <= 2 for row in sampled)
    assert len({row["temperature"] for row in sampled}) > 2
    assert all(1.1 <= float(row["temperature"]) <= 1.2 for row in sampled if row["solver"].startswith("DDPM"))
    assert (folder / "report.html").read_text().count("data:image/png") == 4 + 2  # of the winner and the baseline

    best = min((row for row in rows if row["state"] == "whole"), key=lambda row: float(row["distance"]))
    assert best["budget"].split() == [*map(str, found.sampling.budget)]
    few = ["--config", "mixture/default", "--num_images", "2", "--output", str(tmp_path / "drawn")]
    predict([*few, "--sampling", str(folder / "best.yaml")])
    made = yaml.safe_load((tmp_path / "drawn/samples.json").read_text())
    assert made["identity"]["sampling"] == found.sampling.dump()


@pytest.mark.parametrize("method", ["calibrate", "learn", "adapt"])
def test_a_schedule_is_found_without_trials(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--method", method, "--evaluations", "40", "--profile_samples", "100", "--signal", "variance"]
    found = search([*SMALL, *options, "--output", str(tmp_path)])
    assert SamplingConfig.load(tmp_path / "best.yaml") == found.sampling and not (tmp_path / "trials.csv").exists()
    assert capsys.readouterr().out.strip().endswith(f"{found.sampling.schedule}: {tmp_path}/best.yaml")


@pytest.mark.parametrize("limit", [["--evaluations", "8"], ["--speedup", "1.2", "--unit", "seconds"]], ids=" ".join)
def test_a_solver_is_fitted_and_drawn_with(limit: list[str], tmp_path: Path) -> None:
    options = ["--method", "fit", "--fitting.steps", "[1, 2, 3]", "--profile_samples", "100"]
    found = search([*SMALL, *options, *limit, "--output", str(tmp_path)])
    assert max(found.sampling.budget) <= 3 and found.sampling.evaluations(mixture_module().model.process) <= 12
    drawn = ["--num_images", "2", "--output", str(tmp_path / "drawn"), "--sampling", str(tmp_path / "best.yaml")]
    predict(["--config", "mixture/default", *drawn])
    made = yaml.safe_load((tmp_path / "drawn/samples.json").read_text())
    assert made["identity"]["sampling"] == found.sampling.dump()
    assert made["head_evaluations_per_image"] == sum(found.sampling.budget)


def test_a_limit_in_seconds_is_met_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = ["--speedup", "1.5", "--unit", "seconds", "--batch_size", "200", "--method", "calibrate"]
    found = search([*SMALL, *limit, "--profile_samples", "200", "--output", str(tmp_path)])
    assert found.timed is not None and str(found.timed) in capsys.readouterr().out


def test_a_front_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = search([*SMALL, "--method", "pareto", "--calibration", "null", "--output", str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if f"{tmp_path}/front/0" in line]
    assert len(lines) == len(found.front) and "distance" in lines[0] and "evaluations per image" in lines[0]


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny_mar(latent_size=8, num_classes=10).state_dict(), tmp_path / "tiny.safetensors")
    config = yaml.safe_load(Path(find_config("digits/search")).read_text())
    config["model"]["init_args"] = TINY_DIGITS
    faulty = {"class_path": "tests.search.small.Faulty", "init_args": {"most": 12}}
    constant = {"class_path": "Constant", "init_args": {"steps": 8}}
    config |= {"solver": faulty, "schedule": constant, "calibration": None}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    args = [
        "--config", str(tmp_path / "tiny.yaml"), "--ckpt_path", str(tmp_path / "tiny.safetensors"), "--evaluations",
        "32", "--num_stages", "4", "--rungs", "[100, 200]", "--batch_size", "20", "--trials", "16", "--seeds", "1",
    ]  # fmt: skip
    done = run(*args, "--output", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GLOBAL_RANK: 1" in done.stderr and done.stdout.count("best.yaml") == 1
    found = search([*args, "--output", str(tmp_path / "one")])
    assert SamplingConfig.load(tmp_path / "two/best.yaml") == found.sampling
    one, two = trials(tmp_path / "one"), trials(tmp_path / "two")
    assert {row["state"] for row in two} >= {"whole", "failed"}
    for a, b in zip(one, two, strict=True):
        assert (a["state"], a["budget"]) == (b["state"], b["budget"])
        if a["state"] == "failed":
            assert a["error"] == "ArithmeticError: the sampler broke down"
            assert b["error"] == f"RuntimeError: another process raised {a['error']}"
        else:
            assert float(a["distance"]) == pytest.approx(float(b["distance"]), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "0.1", "--method", "fit"], "not the method fit"),
        (["--latency", "1", "--evaluations", "5"], "give one limit, not --latency and --evaluations"),
        (["--speedup", "-1"], "must be above 0, got -1"),
        (["--evaluations", "9", "--labels", "[4]"], "labels must lie in 0 … 0"),
        (["--evaluations", "9", "--num_stages", "40"], "num_stages must lie in 1 … 16"),
        (["--method", "adapt", "--evaluations", "9", "--num_stages", "1"], "so it needs at least 2 of them"),
        (["--speedup", "2", "--schedule", "Adaptive", "--schedule.threshold", "1"], "over a baseline of fixed steps"),
        (["--evaluations", "9", "--starts", "[no.yaml]"], "no sampling config at no.yaml"),
    ],
)
def test_what_cannot_be_searched_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        search([*SMALL, *options, "--output", str(tmp_path)])


def test_without_a_space_all_is_chosen_that_the_model_has(tmp_path: Path) -> None:
    few = ["--config", "mixture/default", "--num_stages", "4", "--evaluations", "24", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="give a metric"):
        search(few)
    measured = ["--metric", "SlicedWasserstein", "--rungs", "[40]", "--trials", "30", "--seeds", "1"]
    search([*few, *measured, "--calibration", "null"])
    rows = trials(tmp_path)
    chosen = {name for row in rows for name, value in row.items() if value and not row["start"]}
    assert {"knot_0", "knot_3", "num_stages", "solver", "order", "stage_sizes", "temperature"} <= chosen


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        search(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:\n  disa-search" in out and "--space.help" in out and " object at 0x" not in out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_search_configuration_is_read_by_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        search(["--config", name, "--print_config"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "\nmetric:\n  class_path: disa_framework." in out
    assert "class_path: disa_framework.search" in out or "\nspace: null\n" in out


def test_a_search_draws_with_the_model_that_was_trained() -> None:
    files = [Path(find_config(name)) for name in ("digits/mar", "digits/search")]
    trained, searched = (yaml.safe_load(file.read_text()) for file in files)
    training_only = ("mask_ratio_min", "mask_ratio_std", "diffusion_batch_mul", "position_std")
    for name in training_only:
        trained["model"]["init_args"].pop(name)
    assert trained["model"] == searched["model"] and trained["num_stages"] == searched["num_stages"]
