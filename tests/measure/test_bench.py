"""`disa-bench`: parts that add up, floors below the whole, and the command as people run it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from disa_framework import Guidance, SamplingConfig
from disa_framework.cli.bench import benchmark, command
from disa_framework.measure import PARTS, Case, measure
from disa_framework.measure.floor import Floor, Recorder, Spec
from disa_framework.measure.laps import split
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear
from disa_framework.schedules.text import schedule_from
from disa_framework.solvers import DDIM
from disa_framework.tokenizers import SpaceToDepth
from tests.models.tiny import TINY, tiny_mar

MIXTURE = ["--config", "mixture/default", "--batch_sizes", "[3]", "--num_stages", "4", "--repeats", "2"]
LABELS = torch.tensor([0, 1])


class Ticks:
    """A clock that says how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return float(self.reads)


def module(steps: int = 3) -> ARDiffusionModule:
    sampling = SamplingConfig(Constant(steps), num_stages=4, guidance=Guidance(2.0))
    return ARDiffusionModule(tiny_mar(latent_size=8, latent_channels=4), sampling, SpaceToDepth(2)).eval()


def case(steps: int = 3) -> Case:
    return Case(f"{steps} steps", module(steps), LABELS, 2)


# --- parts ----------------------------------------------------------------------------------------------


def test_parts_add_up_to_the_time_between_the_first_and_the_last_look_at_the_clock() -> None:
    drawn, clock = module(), Ticks()
    names, before = list(drawn.state_dict()), drawn.draw(LABELS, torch.arange(2))
    seconds = split(drawn, LABELS, torch.arange(2), clock)
    assert sum(seconds.values()) == clock.reads - 1
    # One tick for the time in a part, once a call: 4 stages; 4 stages prepared and 3 steps in each; one decoder.
    assert {name: seconds[name] for name in ("backbone", "head", "decoder")} == {
        "backbone": 4, "head": 4 * (1 + 3), "decoder": 1,
    }  # fmt: skip
    assert list(drawn.state_dict()) == names and torch.equal(drawn.draw(LABELS, torch.arange(2)), before)


# --- floor ----------------------------------------------------------------------------------------------


def test_a_recording_holds_each_product_with_its_shapes_and_the_weights_themselves() -> None:
    layer, x = nn.Linear(3, 5), torch.randn(4, 3)
    with torch.inference_mode():
        with Recorder(layer.parameters()) as recorder:
            q = layer(x).relu()[None, None]
            nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
        first, second = recorder.calls
        assert first.args[0] == Spec(0, (4, 3), (3, 1), torch.float32) and first.args[1] is layer.weight
        assert [value.shape for value in second.args if isinstance(value, Spec)][:3] == [(1, 1, 4, 5)] * 3
        floor = Floor(recorder.calls, torch.device("cpu"))
        with Recorder(layer.parameters()) as again:
            floor()
    assert again.calls == recorder.calls


def test_a_recording_takes_no_more_memory_than_its_largest_tensors() -> None:
    shapes = [Spec(0, (n, 7), (7, 1), torch.float32) for n in range(1, 50)]
    weight = torch.ones(7, 7)
    with Recorder([weight]) as recorder:
        for spec in shapes:
            torch.ones(spec.shape) @ weight
    floor = Floor(recorder.calls, torch.device("cpu"))
    assert {call.args[0].untyped_storage().nbytes() for call in floor.calls} == {4 * 49 * 7}


def test_the_floor_lies_below_the_whole() -> None:
    few, many = measure([case(3), case(30)], repeats=3, clock=time.process_time)
    for timing in (few, many):
        assert len(timing.whole) == len(timing.floor) == 3
        assert 0 < min(timing.floor) < max(timing.whole)
        for parts, whole in zip(zip(*timing.parts.values(), strict=True), timing.whole, strict=True):
            assert sum(parts) == pytest.approx(whole)


def test_each_step_adds_the_same_calls_to_the_floor() -> None:
    counts = []
    for steps in (3, 4, 5):
        drawn = case(steps)
        with Recorder(drawn.module.parameters()) as recorder:
            drawn.draw()
        counts.append(len(recorder.calls))
    # Of the head with one block at each of 4 stages: in, out, two of the MLP, and two modulations.
    assert [b - a for a, b in pairwise(counts)] == [4 * 6] * 2


PEAKS = """
import torch
from disa_framework.measure.cases import peak_memory
for mebibytes in (256, 1):
    print(peak_memory(torch.device("cpu"), lambda: torch.ones(mebibytes * 2**18)))
"""


def test_peak_memory_is_the_peak_of_this_run_and_not_of_those_before() -> None:
    # In a process of its own: one that has drawn before keeps the memory that it has freed.
    printed = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout.split()
    if "None" in printed:
        pytest.skip("this system does not tell")
    much, little = map(int, printed)
    assert 200 * 2**20 < much - little < 300 * 2**20


# --- command --------------------------------------------------------------------------------------------


def test_sampling_configs_and_schedules_are_timed_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, weights = tmp_path / "saved.yaml", tmp_path / "tiny.safetensors"
    SamplingConfig(Linear(4, 2), DDIM(), num_stages=3).save(saved)
    safetensors.torch.save_file(tiny_mar(latent_size=8, num_classes=10).state_dict(), weights)
    options = {**TINY, "latent_size": 8, "num_classes": 10}
    model = [part for name, value in options.items() for part in (f"--model.{name}", str(value))]
    folder = benchmark([
        "--config", "digits/mar", *model, "--num_stages", "4", "--batch_sizes", "[2, 3]", "--repeats", "2",
        "--output", str(tmp_path / "found"),
        "--schedules", f'["Constant(steps=2)", {saved}, TwoStage(3, 1)]', "--ckpt_path", str(weights),
    ])  # fmt: skip
    found = json.loads((folder / "bench.json").read_text())
    assert found["device"] == "cpu" and found["dtype"] == "float32" and found["weights"] == str(weights)
    assert found["threads"] == torch.get_num_threads() and found["versions"]["torch"] == torch.__version__
    assert [(row["batch_size"], row["budget"]) for row in found["cases"]] == [
        (size, budget) for size in (2, 3) for budget in ([2, 2, 2, 2], [4, 3, 2], [3, 3, 1, 1])
    ]  # fmt: skip
    assert found["cases"][1]["sampling"]["solver"]["class_path"].endswith("DDIM")
    for row in found["cases"]:
        assert {*row["parts"]} == {*PARTS} and row["over_floor"]["median"] > 0
        assert row["head_evaluations"] == sum(row["budget"])
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    assert [row["to_the_first"]["median"] == 1 for row in found["cases"]] == [True, False, False] * 2
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.startswith("case ") and "TwoStage(3, 1)" in out and "device cpu" in out


def test_configurations_are_timed_side_by_side_with_random_weights(tmp_path: Path) -> None:
    options = ["--compare", "digits/xar", "--random_weights", "true", "--schedules", "Constant(1)"]
    folder = benchmark([*MIXTURE, *options, "--output", str(tmp_path)])
    found = json.loads((folder / "bench.json").read_text())
    assert found["weights"] == "random"
    assert [row["case"].partition(",")[0] for row in found["cases"]] == ["mixture/default", "digits/xar"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "digits/mar"], "this model has weights: give a checkpoint with --ckpt_path"),
        (["--random_weights", "true", "--ckpt_path", "a.ckpt"], "give either --ckpt_path or --random_weights"),
        (["--schedules", "[Magic(3)]"], "no schedule 'Magic\\(3\\)'.* known are .*TwoStage"),
        (["--schedules", "[Constant(0)]"], "1 to"),
        (["--schedules", "[Constant]"], "no schedule 'Constant'"),
        (["--schedules", "[absent.yaml]"], "absent.yaml"),
        (["--schedules", '["PerStage([3, 2])"]'], "a budget for 4 stages needs as many step counts, got 2"),
        (["--batch_sizes", "[]"], "there must be something to time"),
        (["--compare", "[no/such]"], "no configuration 'no/such'"),
    ],
)
def test_what_cannot_be_timed_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "none"
    monkeypatch.setattr(sys, "argv", ["disa-bench", *MIXTURE, *options, "--output", str(output)])
    with pytest.raises(SystemExit):
        command()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert not output.exists()
    assert re.search(message, last), last


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:\n  disa-bench" in out and " object at 0x" not in out


@pytest.mark.parametrize("schedule", [Constant(3), Linear(9, 2), schedule_from("PiecewiseLinear([(0, 9), (1, 2)])")])
def test_a_schedule_is_what_it_prints(schedule: Any) -> None:
    assert schedule_from(str(schedule)) == schedule


@pytest.mark.parametrize(
    "text",
    ["os.system('touch {0}')", "__import__('os').system('touch {0}')", "Constant(__import__('os').system('touch {0}'))",
     "subprocess.Popen(['touch', '{0}'])", "pathlib.Path('{0}').touch()", "StepSchedule()", "DDIM()", "Constant(", "3"],
)  # fmt: skip
def test_a_text_that_is_no_schedule_runs_nothing(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no schedule"):
        schedule_from(text.format(tmp_path / "made"))
    assert not any(tmp_path.iterdir())
