"""Orders, stage sizes and guided stages are options of the commands, and of files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from disa_framework import Guidance, SamplingConfig
from disa_framework.cli.predict import predict
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder
from disa_framework.sampling.stage_sizes import ExponentialSizes, ListedSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP

MIXTURE = ["--config", "mixture/default", "--num_images", "2", "--trainer.accelerator", "cpu"]
FILE = SamplingConfig(Constant(2), DPMSolverPP(), 4, Guidance(2.0, stages=(0.2, 0.6)), order=CheckerboardOrder(3))


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ("", {}),
        ("--order HaltonOrder", {"order": HaltonOrder()}),
        ("--order.levels 2", {"order": CheckerboardOrder(2)}),
        ("--stage_sizes ExponentialSizes --stage_sizes.rate 4", {"stage_sizes": ExponentialSizes(4)}),
        ("--num_stages null --stage_sizes ListedSizes --stage_sizes.each [3,6,7]",
         {"stage_sizes": ListedSizes((3, 6, 7)), "num_stages": 3}),
        ("--guidance.stages [0,0.5]", {"guidance": Guidance(2.0, stages=(0.0, 0.5))}),
    ],
)  # fmt: skip
def test_they_draw(options: str, change: dict[str, Any], tmp_path: Path) -> None:
    FILE.save(tmp_path / "best.yaml")
    args = ["--sampling", str(tmp_path / "best.yaml"), "--output", str(tmp_path / "drawn"), *options.split()]
    drawn = predict([*MIXTURE, *args]).facts()["identity"]["sampling"]
    assert drawn == json.loads(json.dumps(replace(FILE, **change).dump()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--order Checkers", "--order must be a class, one of CheckerboardOrder, HaltonOrder, .*got Checkers"),
        ("--stage_sizes Even", "--stage_sizes must be a class, one of BinomialSizes, .*got Even"),
        ("--order HaltonOrder --order.levels 2", "--order: HaltonOrder has no levels"),
        ("--guidance.stages 0.5", "--guidance.stages must be a list"),
        ("--order ListedOrder --order.places [1,0]", "this order is of 2 tokens, the model draws 16"),
        ("--stage_sizes ListedSizes --stage_sizes.each [8,8]", "these stage sizes are for 2 stages, got num_stages=16"),
        ("--num_stages 2 --stage_sizes ListedSizes --stage_sizes.each [8,9]", "these sizes are of 17 tokens"),
        ("--guidance.stages [0.6,0.5]", "guidance stages must satisfy"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stop:
        predict([*MIXTURE, "--output", str(tmp_path / "drawn"), *options.split()])
    said = capsys.readouterr().err.strip() or str(stop.value)
    assert "\n" not in said and re.search(message, said), said
    assert not (tmp_path / "drawn").exists()
