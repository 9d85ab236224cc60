"""A sampling config is a value, and a short file."""

from __future__ import annotations

import subprocess
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.sampling.order import CheckerboardOrder, HaltonOrder
from disa_framework.sampling.stage_sizes import ListedSizes
from disa_framework.schedules import Adaptive, Constant, Cosine, Linear, PerStage, PiecewiseLinear, TwoStage
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Halves,
    Heun,
    RectifiedFlow,
    Spaced,
    Strided,
    Uniform,
    UniformTime,
    VPCosine,
)
from disa_framework.toy.mixture import MixtureAR

CHANGES: list[dict[str, Any]] = [
    *({"schedule": schedule} for schedule in (
        TwoStage(), Linear(20, 3), Cosine(), PerStage((9, 5, 1)), PiecewiseLinear(((0.0, 9.0), (1.0, 2.0))),
        Adaptive(0.5, "variance", first=7),
    )),
    *({"solver": solver} for solver in (
        DDPM(Spaced(), "large", 0.9), DDIM(Strided(None), 0.3), DPMSolver(3), DPMSolverPP(1, UniformTime(940)), Euler(),
        Heun(Uniform(0.1)), EulerMaruyama(temperature=1.1), Euler(Halves(None)),
    )),
    {"num_stages": 7},
    {"guidance": Guidance(2.5, "constant", (0.1, 0.9))},
    {"guidance": Guidance(2.5, stages=(0.2, 0.5))},
    {"guidance": Guidance(2.5, reuse=3)},
    {"cache": Lazy(8, 0.2, 1)},
    {"order": CheckerboardOrder(3)},
    {"stage_sizes": ListedSizes((3, 1, 12))},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_it_compares_by_value_and_nobody_changes_it(changes: dict[str, Any]) -> None:
    one, twin, other = SamplingConfig(**changes), SamplingConfig(**changes), SamplingConfig()
    assert one == twin and hash(one) == hash(twin) and one.dump() == twin.dump()
    assert one != other and one.dump() != other.dump()
    assert replace(other, **changes) == one
    assert replace(one, **{name: getattr(other, name) for name in changes}) == other
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, None)


def test_parts_that_came_later_are_written_where_they_say_something() -> None:
    assert SamplingConfig().dump().keys() == {"schedule", "solver", "num_stages", "guidance", "cache"}
    assert SamplingConfig().dump()["guidance"].keys() == {"scale", "schedule", "interval"}


def test_the_number_of_stages_is_that_of_the_sizes() -> None:
    model, listed = MixtureAR(), SamplingConfig(stage_sizes=ListedSizes((3, 6, 7)))
    assert model.settle(listed).stages == 3
    with pytest.raises(ValueError, match="for 3 stages, got num_stages=4"):
        replace(listed, num_stages=4)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_saved_and_loaded_it_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    sampling = SamplingConfig(**changes)
    sampling.save(tmp_path / "best.yaml")
    assert SamplingConfig.load(tmp_path / "best.yaml") == sampling
    assert SamplingConfig.load(str(tmp_path / "best.yaml")).dump() == sampling.dump()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", SamplingConfig()),
        ("num_stages: 8", SamplingConfig(num_stages=8)),
        ("schedule: Linear", SamplingConfig(Linear())),
        ("solver: {class_path: Euler}", SamplingConfig(solver=Euler())),
        ("{schedule: {class_path: disa_framework.schedules.Linear, init_args: {early: 9}}, cache: null}",
         SamplingConfig(Linear(9))),
        ("{order: HaltonOrder, stage_sizes: {class_path: ListedSizes, init_args: {each: [1, 3]}}}",
         SamplingConfig(order=HaltonOrder(), stage_sizes=ListedSizes((1, 3)))),
        ("guidance: {scale: 3.0, interval: [0.0, 0.5]}", SamplingConfig(guidance=Guidance(3.0, interval=(0.0, 0.5)))),
    ],
)  # fmt: skip
def test_a_file_by_hand_may_be_short(text: str, expected: SamplingConfig, tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(text)
    assert SamplingConfig.load(path) == expected


def test_budget_and_evaluations_are_known_with_the_number_of_stages() -> None:
    sampling = SamplingConfig(Linear(10, 4), num_stages=3)
    assert sampling.budget == (10, 7, 4) and sampling.stages == 3
    assert sampling.evaluations(VPCosine()) == 21
    with pytest.raises(ValueError, match="give a number, or settle"):
        SamplingConfig().budget  # noqa: B018
    with pytest.raises(ValueError, match="Heun"):
        sampling.evaluations(RectifiedFlow())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("schedule", 50), ("schedule", Constant), ("solver", Linear()), ("guidance", 2.0), ("cache", "Lazy"),
        ("num_stages", 0), ("num_stages", 2.5), ("num_stages", True),
    ],
)  # fmt: skip
def test_a_part_that_is_none_is_refused(name: str, part: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a .*, got"):
        SamplingConfig(**{name: part})


BROKEN = {
    "[1, 2]": "made of its fields by name",
    "": "got None",
    "a: [": "while parsing",
    "steps: 5": "no steps: it has schedule, solver, num_stages",
    "schedule: 5": "expected a StepSchedule by its class_path",
    "schedule: Lineal": "Lineal is no StepSchedule; known are .*Linear",
    "schedule: Euler": "Euler is no StepSchedule",
    "schedule: null": "null where a value belongs",
    "schedule: {class_path: disa_framework.solvers.DDPM}": "no StepSchedule",
    "schedule: {class_path: disa_framework.nowhere.Linear}": "there is no module disa_framework.nowhere",
    "schedule: {class_path: Linear, init_args: {step: 3}}": "Linear has no step: it has early, late",
    "schedule: {class_path: Linear, init_args: {early: 0}}": "has 0",
    "schedule: {class_path: PerStage}": "PerStage needs steps",
    "schedule: {class_path: StepSchedule}": "no StepSchedule",
    "guidance: {scale: [1]}": "Guidance does not take",
    "guidance: 3": "a Guidance is made of its fields",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_holds_none_is_named_and_says_why(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.yaml holds no sampling config.*{BROKEN[text]}"):
        SamplingConfig.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"broken\.yaml holds no sampling config"):
        SamplingConfig.load(path)
    with pytest.raises(FileNotFoundError, match=r"no sampling config at .*nowhere\.yaml"):
        SamplingConfig.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("field", ["schedule", "solver", "cache"])
@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.exec", "tests.booby.Trap", "torch.load"])
def test_a_file_runs_nothing(field: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it ran"))
    content = {field: {"class_path": path, "init_args": {"command": f"touch {tmp_path}/ran"}}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"{path} is no"):
        SamplingConfig.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path}/ran']")
    with pytest.raises(ValueError, match="holds no sampling config"):
        SamplingConfig.load(tmp_path / "bad.yaml")
    assert not (tmp_path / "ran").exists()
