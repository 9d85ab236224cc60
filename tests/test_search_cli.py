"""`disa-search`, run as people run it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
import safetensors.torch
import yaml

from disa_framework.cli.common import find_config
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import PerStage, load_schedule
from disa_framework.search import CostModel
from disa_framework.search.meter import Meter
from disa_framework.search.space import Setting
from disa_framework.search.study import open_storage
from disa_framework.solvers import DDPM, Cosine
from tests.models.tiny import TINY, tiny_mar

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


def test_a_search_leaves_a_schedule_that_images_are_drawn_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PerStage([9, 7, 4, 2]).save(tmp_path / "mine.yaml")
    chosen = ["--space.guidance", "[1, 2]", "--space.solvers+", "DDIM", "--space.num_stages", "[4, 3]"]
    chosen += ["--space.temperature", "[1.1, 1.2]", "--finalists", "1", "--trials", "29"]
    starts = ["--starts", f"[{tmp_path}/mine.yaml]"]
    found = ["Calibrated", "Learned", "Calibrated (3 stages)", "Learned (3 stages)"]
    folder = search([*SMALL, *chosen, *starts, "--evaluations", "24", "--output", str(tmp_path / "found")])
    out = capsys.readouterr().out
    assert "19 of 29 trials are what it begins with" in out
    assert "winner" in out and "baseline" in out and "29 trials: " in out
    rows = trials(folder)
    assert [row["start"] for row in rows[:5]] == [f"{tmp_path}/mine.yaml (given)", *found]
    assert [len(row["budget"].split()) for row in rows[:5]] == [4, 4, 4, 3, 3] and len(rows) == 29
    assert len(list(folder.glob("profile-*.safetensors"))) == 2
    assert all(float(row["cost"]) <= 24 for row in rows)
    assert all(row["solver"].startswith("DDPM") for row in rows if row["start"])
    sampled = [row for row in rows if not row["start"]]
    assert len(sampled) == 10 and all(1 <= float(row["guidance"]) <= 2 for row in sampled)
    assert len({row["temperature"] for row in sampled}) > 2
    assert all(1.1 <= float(row["temperature"]) <= 1.2 for row in sampled if row["solver"].startswith("DDPM"))
    assert (folder / "report.html").read_text().count("data:image/png") == 4

    best = min((row for row in rows if row["state"] == "whole"), key=lambda row: float(row["distance"]))
    budget = list(map(int, best["budget"].split()))
    stages = str(len(budget))
    assert list(load_schedule(folder / "best_schedule.yaml").budget(len(budget))) == budget
    few = ["--config", "mixture/default", "--num_images", "2", "--output", str(tmp_path / "drawn")]
    predict([*few, "--num_stages", stages, "--schedule", str(folder / "best_schedule.yaml")])
    configured = predict([*few[:-1], str(tmp_path / "configured"), "--config", str(folder / "best_config.yaml")])
    made = yaml.safe_load(configured.manifest.read_text())
    settings = made["settings"]
    solver = settings["solver"]["class_path"].rpartition(".")[2]
    assert made["budget"] == budget and str(settings["num_stages"]) == stages
    assert solver == best["solver"].partition("(")[0]
    if best["start"]:  # of which the schedule and the number of stages are taken, and the rest is as configured
        assert settings["guidance"]["scale"] == 1 and settings["solver"]["init_args"]["temperature"] == 1
        return
    assert settings["guidance"]["scale"] == pytest.approx(float(best["guidance"]))
    if solver == "DDPM":
        assert settings["solver"]["init_args"]["temperature"] == pytest.approx(float(best["temperature"]))


def test_a_search_goes_on_and_measures_no_cost_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = [*SMALL, "--speedup", "1.3", "--unit", "seconds", "--output", str(tmp_path), "--trials"]
    url = f"sqlite:///{tmp_path}/mine.db"
    folder = search([*timed, "3", "--storage", url])
    cost = next(folder.glob("cost-*.json")).read_bytes()
    out = capsys.readouterr().out
    assert "% off, in the median over budgets they were not fitted to" in out and faster(out) >= 1.3
    _, winner, *_, baseline = (line.split() for line in out.splitlines() if "→" in line)
    assert float(baseline[-4]) / float(winner[-4]) == pytest.approx(faster(out), rel=0.01)  # timed once
    before = trials(folder)
    search([*timed, "5", "--storage", url])
    after = trials(folder)  # those over the limit are listed too, and timing decides how many there are
    assert after[: len(before)] == before and len(after) >= len(before) + 2
    assert next(folder.glob("cost-*.json")).read_bytes() == cost
    assert "not fitted to" not in capsys.readouterr().out
    kept = optuna.load_study(study_name="disa", storage=open_storage(url)).trials
    assert sum(trial.state.is_finished() for trial in kept) == len(after)
    with pytest.raises(ValueError, match=r"other settings \(seed differ\)"):
        search([*timed, "6", "--storage", url, "--seed", "1"])


def test_a_winner_that_takes_too_long_is_shortened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_cost(module: ARDiffusionModule, condition: object, batch_size: int) -> CostModel:
        head = (1e-5,) * module.num_stages
        return CostModel(0.0, (0.0,) * 4, head, module.model.process, module.solver, batch_size=batch_size)

    shares = iter([1.2, 0.9])  # of the limit: what the winner takes, when it is timed first and when it is shorter

    def latencies(meter: Meter, settings: Sequence[Setting]) -> list[float]:
        return [4e-4 * next(shares), *[2e-3] * (len(settings) - 1)]

    monkeypatch.setattr("disa_framework.cli.search.measure_cost", measure_cost)
    monkeypatch.setattr(Meter, "latencies", latencies)
    folder = search([*SMALL, "--latency", "4e-4", "--calibrate", "false", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    winner = next(line.split() for line in out.splitlines() if line.startswith("winner"))
    budget = load_schedule(folder / "best_schedule.yaml").budget(4)
    # Forty steps were to fit. A fifth and a little more had to go.
    assert 28 <= sum(budget) <= 40 / 1.2 and str(sum(budget)) in winner and "shortened" in " ".join(winner)
    assert "takes 0.36 ms an image, within the limit of 0.4; the baseline" in out
    assert "takes 0.36 ms an image, within the limit of 0.4" in (folder / "report.html").read_text()


def faster(out: str) -> float:
    """How many times as fast as the baseline something was, as it says."""
    said = re.search(r"it takes (.+) ms an image, within the limit of (.+); the baseline.* takes (.+) times", out)
    assert said is not None and float(said[1]) <= float(said[2])
    return float(said[3])


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("method", ["calibrate", "adapt"])
def test_what_is_found_without_trials_is_as_fast_as_asked(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["--speedup", "1.5", "--unit", "seconds", "--batch_size", "200"]
    folder = search([*SMALL, *limit, "--method", method, "--profile_samples", "200", "--output", str(tmp_path)])
    assert load_schedule(folder / "best_schedule.yaml").reads_signals == (method == "adapt")
    assert faster(capsys.readouterr().out) >= 1.5


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("method", ["calibrate", "learn", "adapt"])
def test_a_schedule_is_found_without_trials(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", method, "--evaluations", "40", "--profile_samples", "200", "--batch_size", "200"]
    folder = search([*SMALL, *options, "--output", str(tmp_path)])
    schedule = load_schedule(folder / "best_schedule.yaml")
    assert schedule.reads_signals == (method == "adapt") and not (folder / "trials.csv").exists()
    if method != "adapt":
        budget = schedule.budget(4)
        assert 37 < sum(DDPM().evaluations(Cosine(), steps) for steps in budget) <= 40 and budget[0] > budget[3]
    drawn = predict([
        "--config", "mixture/default", "--num_stages", "4", "--num_images", "3", "--output", str(tmp_path / "drawn"),
        "--schedule", str(folder / "best_schedule.yaml"),
    ])  # fmt: skip
    assert len(list(drawn.manifest.parent.glob("*.png"))) == 3
    assert ("images, up to" in capsys.readouterr().out) == (method == "adapt")


def test_a_study_begins_with_calibrated_and_learned_schedules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = search([*SMALL, "--evaluations", "40", "--profile_samples", "100", "--output", str(tmp_path)])
    assert [row["start"] for row in trials(folder)][:2] == ["Calibrated", "Learned"]
    few = [*SMALL, "--evaluations", "6", "--output", str(tmp_path / "few"), "--trials", "1"]
    search(few)
    out = capsys.readouterr().out
    assert "beginning without a calibrated schedule: no budget costs at most 6" in out
    assert "beginning without a learned schedule: no budget costs at most 6" in out


def test_a_front_has_a_schedule_for_every_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stale in (tmp_path / "front/99.yaml", tmp_path / "configs/99.yaml"):  # of a front that was longer
        stale.parent.mkdir()
        stale.touch()
    folder = search([*SMALL, "--method", "pareto", "--trials", "20", "--output", str(tmp_path)])
    assert not (tmp_path / "front/99.yaml").exists() and not (tmp_path / "configs/99.yaml").exists()
    budgets = [load_schedule(path).budget(4) for path in sorted(folder.glob("front/*.yaml"))]
    assert len(set(budgets)) == len(budgets) > 2 and [*map(sum, budgets)] == sorted(map(sum, budgets))
    assert f"{folder}/front/00.yaml: distance" in capsys.readouterr().out
    assert (folder / "report.html").exists() and not (folder / "best_schedule.yaml").exists()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny_mar(latent_size=8, num_classes=10).state_dict(), tmp_path / "tiny.safetensors")
    config = yaml.safe_load(Path(find_config("digits/search")).read_text())
    config["model"]["init_args"] = TINY_DIGITS
    faulty = {"class_path": "tests.search.small.Faulty", "init_args": {"most": 12}}
    config |= {"solver": faulty, "schedule": {"class_path": "Constant", "init_args": {"steps": 8}}, "calibrate": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    args = [
        "--config", str(tmp_path / "tiny.yaml"), "--ckpt_path", str(tmp_path / "tiny.safetensors"), "--evaluations",
        "32", "--num_stages", "4", "--rungs", "[100, 200]", "--batch_size", "20", "--trials", "16", "--seeds", "1",
    ]  # fmt: skip
    done = run(*args, "--output", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GLOBAL_RANK: 1" in done.stderr
    one, two = trials(search([*args, "--output", str(tmp_path / "one")])), trials(tmp_path / "two")
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
        ([], "give a limit: --latency, --speedup or --evaluations"),
        (["--latency", "1", "--evaluations", "5"], "give one limit, not --latency and --evaluations"),
        (["--speedup", "-1"], "--speedup must be above 0, got -1"),
        (["--evaluations", "3"], "meets a limit of 3 evaluations per image: the fastest takes 4"),
        (["--latency", "1e-9"], "meets a limit of 1e-09 seconds per image: the fastest takes 0.0"),
        (["--evaluations", "9", "--rungs", "[5, 5]"], r"must be above 0 and rise, got \[5, 5\]"),
        (["--evaluations", "9", "--storage", "nosuch://x"], "cannot open the storage nosuch://x"),
        (["--evaluations", "9", "--labels", "[4]"], "labels must lie in 0 … 0"),
        (["--evaluations", "9", "--num_stages", "40"], "num_stages must lie in 1 … 16"),
        (["--evaluations", "9", "--space.num_stages", "[4, 40]"], "must lie in 1 … 16 for this model, got 40"),
        (["--method", "pareto", "--space.num_stages", "[0]"], "must lie in 1 … 16 for this model, got 0"),
        (["--method", "adapt", "--evaluations", "9", "--num_stages", "1"], "so it needs at least 2 of them"),
        (["--speedup", "2", "--schedule", "Adaptive", "--schedule.threshold", "1"], "over a baseline of fixed steps"),
    ],
)
def test_what_cannot_be_searched_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        search([*SMALL, *options, "--output", str(tmp_path)])


def test_a_given_budget_decides_its_number_of_stages(tmp_path: Path) -> None:
    PerStage([9, 7, 4]).save(tmp_path / "mine.yaml")
    given = [*SMALL, "--evaluations", "24", "--starts", f"[{tmp_path}/mine.yaml]", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=r"mine.yaml has steps for 3 stages: allow them with --space.num_stages"):
        search(given)
    folder = search([*given, "--space.num_stages", "[3]", "--calibrate", "false", "--trials", "2"])
    assert trials(folder)[0]["budget"] == "9 7 4"


def test_without_a_space_schedules_are_lines_between_knots(tmp_path: Path) -> None:
    few = ["--config", "mixture/default", "--num_stages", "4", "--evaluations", "24", "--output", str(tmp_path)]
    search([*few, "--method", "calibrate", "--profile_samples", "50"])
    measured = ["--metric", "SlicedWasserstein", "--rungs", "[40]", "--trials", "14", "--seeds", "1"]
    rows = trials(search([*few, *measured, "--calibrate", "false"]))
    assert {"knot_0", "knot_3"} <= rows[-1].keys() and rows[-1]["knot_0"] and not rows[-1]["start"]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        search(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "examples:\n  disa-search" in out and "search.space.Stages" in out and " object at 0x" not in out


@pytest.mark.parametrize("name", CONFIGS)
def test_every_search_configuration_is_read_by_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        search(["--config", name, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: disa_framework.search" in capsys.readouterr().out


def test_a_search_draws_with_the_model_that_was_trained() -> None:
    files = [Path(find_config(name)) for name in ("digits/mar", "digits/search")]
    trained, searched = (yaml.safe_load(file.read_text()) for file in files)
    training_only = ("mask_ratio_min", "mask_ratio_std", "diffusion_batch_mul", "position_std")
    for name in training_only:
        trained["model"]["init_args"].pop(name)
    assert trained["model"] == searched["model"] and trained["num_stages"] == searched["num_stages"]
