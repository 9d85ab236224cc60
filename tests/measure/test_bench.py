"""`disa-bench`: parts that add up, floors below the whole, and the command as people run it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from disa_framework import Guidance, SamplingConfig
from disa_framework.cli.bench import bench
from disa_framework.measure import PARTS, Case, time_cases
from disa_framework.measure.floor import Recorder, Spec, replaying, with_tensors
from disa_framework.measure.operations import operations
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.products import use_fast_products
from disa_framework.schedules import Constant, Linear
from disa_framework.schedules.text import schedule_from
from disa_framework.solvers import DDIM
from disa_framework.tokenizers import SpaceToDepth
from tests.measure.slow import BACKBONE, BATCH, FIXED, HEAD, SETUP, Clock, K, Slow, labels, slow_module
from tests.models.tiny import tiny_digits, tiny_mar

MIXTURE = ["--config", "mixture/default", "--batch_sizes", "[3]", "--num_stages", "4", "--repeats", "2"]
LABELS = torch.tensor([0, 1])


def case(steps: int = 3) -> Case:
    sampling = SamplingConfig(Constant(steps), num_stages=4, guidance=Guidance(2.0))
    module = ARDiffusionModule(tiny_mar(latent_size=8, latent_channels=4), sampling, SpaceToDepth(2))
    return Case(f"{steps} steps", module, LABELS, 2)


def recorded(module: nn.Module, run: Callable[[], object]) -> list[Any]:
    """The calls that count."""
    with torch.inference_mode(), Recorder(module.parameters()) as recorder:
        run()
    return recorder.calls


# --- parts ----------------------------------------------------------------------------------------------


def test_each_part_has_its_time(clock: Clock) -> None:
    slow = Slow(clock)
    slow.interrupt = lambda run, stage: 10.0 * (run % 2)  # the machine is slower at every other run
    (timing,) = time_cases([Case("slow", slow_module(slow, schedule=Constant(3)), labels(), BATCH)], repeats=2)
    heads = sum(SETUP + 3 * head for head in HEAD)
    whole = 10.0 * K + sum(BACKBONE) + heads + FIXED
    assert timing.seconds("whole") == pytest.approx([whole / BATCH] * 2)
    shares = {part: [spent / whole * BATCH for spent in timing.seconds(part)] for part in PARTS}
    parts = {"backbone": sum(BACKBONE), "head": heads, "decoder": FIXED, "rest": 0}
    assert shares == {part: pytest.approx([spent / (whole - 10.0 * K)] * 2) for part, spent in parts.items()}


# --- floor ----------------------------------------------------------------------------------------------


def test_a_recording_holds_each_product_with_its_shapes_and_the_weights_themselves() -> None:
    layer, x = nn.Linear(3, 5), torch.randn(4, 3)

    def run() -> None:
        q = layer(x).relu()[None, None]
        nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))

    first, second = calls = recorded(layer, run)
    assert first.args[0] == Spec(0, (4, 3), (3, 1), torch.float32) and first.args[1] is layer.weight
    assert [value.shape for value in second.args if isinstance(value, Spec)][:3] == [(1, 1, 4, 5)] * 3
    again = recorded(layer, replaying(calls, torch.device("cpu")))
    assert [(call.func, call.args, call.keywords) for call in again] == [
        (call.func, call.args, call.keywords) for call in calls
    ]


def test_a_recording_takes_no_more_memory_than_its_largest_tensors() -> None:
    weight = nn.Linear(7, 7, bias=False)
    calls = recorded(weight, lambda: [weight(torch.ones(n, 7)) for n in range(1, 50)])
    floor = with_tensors(calls, torch.device("cpu"))
    assert {call.args[0].untyped_storage().nbytes() for call in floor} == {4 * 49 * 7}


def test_the_floor_lies_below_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # others use this machine, too
    for timing in time_cases([case(3), case(30)], repeats=3):
        assert len(timing.rounds) == 3
        assert 0 < min(timing.seconds("floor")) < max(timing.seconds("whole"))
        for found in timing.rounds:
            assert sum(found[part] for part in PARTS) == pytest.approx(found["whole"])


def test_each_step_adds_the_same_calls_to_the_floor() -> None:
    counts = [len(recorded(drawn.module, drawn.draw)) for drawn in map(case, (3, 4, 5))]
    # Of the head with one block at each of 4 stages: in, out, two of the MLP, and two modulations.
    assert [b - a for a, b in pairwise(counts)] == [4 * 6] * 2


def test_operations_are_those_of_the_shapes_whichever_library_multiplies() -> None:
    small, large = nn.Linear(3, 5), nn.Linear(1024, 512)
    use_fast_products(large_model := nn.Sequential(large))
    q, x, image = torch.ones(2, 4, 7, 8), torch.ones(64, 1024), torch.ones(1, 2, 6, 6)
    convolution = nn.Conv2d(2, 3, 3)

    def run() -> None:
        small(torch.ones(4, 3))
        large_model(x)
        nn.functional.scaled_dot_product_attention(q, q, q)
        convolution(image)

    calls = recorded(nn.ModuleList([small, large, convolution]), run)
    attention, convolved = 2 * 2 * (2 * 4 * 7 * 7 * 8), 2 * 2 * 9 * 3 * 4 * 4
    assert operations(calls, torch.device("cpu")) == 2 * 4 * 3 * 5 + 2 * 64 * 1024 * 512 + attention + convolved


PEAKS = """
import torch
from disa_framework.runtime.memory import peak_memory
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
    saved, model = tmp_path / "saved.yaml", tiny_digits(tmp_path)
    SamplingConfig(Linear(4, 2), DDIM(), num_stages=3).save(saved)
    folder = bench([
        "--config", "digits/mar", *model, "--num_stages", "4", "--batch_sizes", "[2, 3]", "--repeats", "2",
        "--output", str(tmp_path / "found"),
        "--schedules", f'["Constant(steps=2)", {saved}, TwoStage(3, 1)]',
    ])  # fmt: skip
    found = json.loads((folder / "bench.json").read_text())
    assert found["device"] == "cpu" and found["dtype"] == "float32" and found["weights"] == model[-1]
    assert found["threads"] == torch.get_num_threads() and found["versions"]["torch"] == torch.__version__
    assert [(row["batch_size"], row["budget"]) for row in found["cases"]] == [
        (size, budget) for size in (2, 3) for budget in ([2, 2, 2, 2], [4, 3, 2], [3, 3, 1, 1])
    ]  # fmt: skip
    assert found["cases"][1]["sampling"]["solver"]["class_path"].endswith("DDIM")
    for row in found["cases"]:
        assert {*row["parts"]} == {*PARTS} and row["over_floor"]["median"] > 0
        assert row["operations"] > 0 and 0 < row["of_peak"]["low"] < 1
        assert row["head_evaluations"] == sum(row["budget"])
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    assert [row["to_the_first"]["median"] == 1 for row in found["cases"]] == [True, False, False] * 2
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.startswith("case ") and "TwoStage(3, 1)" in out and "device cpu" in out


def test_configurations_are_timed_side_by_side_with_random_weights(tmp_path: Path) -> None:
    options = ["--compare", "digits/xar", "--random_weights", "true", "--schedules", "Constant(1)"]
    folder = bench([*MIXTURE, *options, "--output", str(tmp_path)])
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
    options: list[str], message: str, refused: Callable[..., tuple[object, list[str]]], tmp_path: Path
) -> None:
    output = tmp_path / "none"
    _, lines = refused("disa-bench", *MIXTURE, *options, "--output", str(output))
    assert re.search(message, lines[-1]), lines
    assert not output.exists()


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
