"""`disa-diagnose`, run as people run it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from disa_framework.cli.common import find_config
from disa_framework.cli.diagnose import diagnose
from tests.models.tiny import tiny_digits

MIXTURE = [
    "--config", "mixture/diagnose", "--num_stages", "4", "--num_samples", "60", "--steps", "6", "--menu", "[2, 3]",
]  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_diagnosis_leaves_a_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = diagnose([*MIXTURE, "--repeats", "3", "--output", str(tmp_path / "found")])
    stages, out = rows(folder / "stages.csv"), capsys.readouterr().out
    assert [row["stage"] for row in stages] == list("0123") and {"r2", "error_3", "head_ms"} <= {*stages[0]}
    assert float(stages[0]["entropy"]) > float(stages[3]["entropy"])
    assert out.startswith("stage ") and "trend" in out and f"{folder.name}/stages.html" in out
    page = (folder / "stages.html").read_text()
    assert page.count("data:image/png") == 6 == len(list(folder.glob("*.png"))) and "http" not in page
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))


def test_digits_are_diagnosed_and_ablated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(Path(find_config("digits/diagnose")).read_text())
    config["config"] = find_config("digits/mar")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    args = [
        "--config", str(tmp_path / "tiny.yaml"), *tiny_digits(tmp_path), "--output", str(tmp_path),
        "--num_stages", "4", "--num_samples", "30", "--steps", "4",
    ]  # fmt: skip
    folder = diagnose([*args, "--parts", "[variance, straightness]", "--repeats", "2"])
    assert list(rows(folder / "stages.csv")[0]) == ["stage", "variance", "straightness"]
    diagnose([*args, "--ablation", "early_late", "--menu", "[2]", "--seeds", "2"])
    assert [row["variation"] for row in rows(folder / "early_late.csv")] == [
        "4 early, 4 late", "2 early, 4 late", "4 early, 2 late",
    ]  # fmt: skip
    assert "cut to 2 steps, early is " in capsys.readouterr().out
    assert (folder / "early_late.png").exists()


def test_what_was_measured_does_not_depend_on_the_schedule(tmp_path: Path) -> None:
    parts = ["--parts", "[variance]", "--output"]
    for name, schedule in (("a", ["--schedule.init_args.early", "9"]), ("b", [])):
        diagnose([*MIXTURE, *schedule, *parts, str(tmp_path / name)])
    assert rows(tmp_path / "a/stages.csv") == rows(tmp_path / "b/stages.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "[magic]"], "no part 'magic': the parts of a diagnosis are predictability"),
        (["--config", "digits/diagnose"], "this model has weights: give a checkpoint with --ckpt_path"),
        (["--metric", "null", "--ablation", "clip"], "give --metric"),
        (["--ablation", "clip", "--menu", "[50]"], r"from 1 to below 6, got \[50\]"),
        (["--num_samples", "4"], "at least 20 samples, got 4"),
        (["--labels", "[4]"], "labels must lie in 0 … 0"),
        (["--num_stages", "40"], "num_stages must lie in 1 … 16"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(
    options: list[str], message: str, refused: Callable[..., tuple[object, list[str]]], tmp_path: Path
) -> None:
    output = tmp_path / "none"
    status, lines = refused("disa-diagnose", *MIXTURE, *options, "--output", str(output))
    assert status == 1 and "disa-diagnose: error: " in lines[-1] and re.search(message, lines[-1])
    assert not output.exists()
