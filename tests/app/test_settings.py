"""What is chosen on the page is a sampling config, and the command that the page shows draws with the same one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from disa_framework import SamplingConfig
from disa_framework.app.settings import CONFIGURED, KEPT, Choices, Setting, command_text
from disa_framework.cli.common import find_config, instantiate, make_module, make_parser, parse, recipes
from disa_framework.cli.drawing import add_drawing
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.order import HaltonOrder
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DDPM, DPMSolverPP, Karras, LogSNR

FAMILIES = ("mar", "flowar", "xar", "causal")


def module_of(*options: str) -> ARDiffusionModule:
    """As the commands make it."""
    parser = make_parser("disa-test", "")
    add_drawing(parser)
    return make_module(instantiate(parser, parse(parser, [*options, "--trainer.accelerator=cpu"])))


def choices_of(family: str) -> Choices:
    name = f"fashion/{family}"
    module = module_of("--config", name)
    presets = {recipe: SamplingConfig.load(path) for recipe, path in recipes([name]).items()}
    return Choices.of(module.model, {CONFIGURED: module.sampling, **presets})


def changed(setting: Setting, **parts: Any) -> Setting:
    return replace(setting, **parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_as_it_is_is_itself(family: str) -> None:
    choices = choices_of(family)
    assert list(choices.presets) == [CONFIGURED, "balanced", "best", "fast"] and find_config(f"fashion/{family}")
    for name, sampling in choices.presets.items():
        assert Setting.kept(name, choices).sampling(choices) == sampling


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_offered_can_be_drawn_with(family: str) -> None:
    choices = choices_of(family)
    setting = changed(Setting.kept(CONFIGURED, choices), schedule="Constant", early=20)
    for solver in choices.solvers:
        assert type(changed(setting, solver=solver).sampling(choices).solver).__name__ == solver
    assert len(choices.solvers) >= 4 and len(choices.grids) >= 6
    assert bool(choices.orders) == (family == "mar")
    for order in choices.orders:
        assert type(changed(setting, order=order).sampling(choices).order).__name__ == order


def test_parts_replace_those_of_the_preset() -> None:
    choices = choices_of("mar")
    kept = Setting.kept("balanced", choices)
    preset = choices.presets["balanced"]
    assert isinstance(preset.solver, DPMSolverPP)
    ramp = changed(kept, schedule="Linear", early=12, late=3, grid="Karras", num_stages=7, order="HaltonOrder")
    assert ramp.sampling(choices) == replace(
        preset, schedule=Linear(12, 3), solver=replace(preset.solver, grid=Karras()), num_stages=7, order=HaltonOrder()
    )
    other = changed(kept, schedule="Constant", early=9, solver="DDPM", grid="LogSNR", guidance=2)
    guided = replace(preset.guidance, scale=2.0)
    solver = DDPM(LogSNR(), temperature=preset.solver.temperature)  # which both have
    assert other.sampling(choices) == replace(preset, schedule=Constant(9), solver=solver, guidance=guided)


@pytest.mark.parametrize(
    ("preset", "parts", "message"),
    [
        ("fast", {"num_stages": 9}, "8 stages"),
        ("fast", {"grid": "LogSNR"}, "no grid"),
        (CONFIGURED, {"num_stages": 50}, "num_stages must lie in 1 … 49"),
    ],
)
def test_what_does_not_fit_is_refused(preset: str, parts: dict[str, Any], message: str) -> None:
    choices = choices_of("mar")
    with pytest.raises(ValueError, match=message):
        changed(Setting.kept(preset, choices), **parts).sampling(choices)


@pytest.mark.parametrize(
    ("family", "preset", "parts"),
    [
        ("mar", CONFIGURED, {}),
        ("mar", "fast", {}),
        ("mar", "balanced", {"schedule": "Linear", "early": 12, "late": 3}),
        ("mar", "balanced", {"grid": "Karras", "num_stages": 7, "order": "HaltonOrder", "guidance": 1.5}),
        ("mar", CONFIGURED, {"solver": "UniPC", "grid": "PowerTime", "schedule": "TwoStage", "early": 9, "late": 4}),
        ("mar", "best", {"solver": "DDIM", "schedule": "Constant", "early": 11}),
        ("flowar", CONFIGURED, {"solver": "Heun", "schedule": "Cosine", "early": 10, "late": 4}),
        ("xar", "best", {"grid": "Shift", "guidance": 3.0}),
        ("causal", "fast", {"solver": "DPMSolverPP"}),
    ],
)
def test_the_command_draws_with_what_was_chosen(family: str, preset: str, parts: dict[str, Any]) -> None:
    choices = choices_of(family)
    setting = changed(Setting.kept(preset, choices), **parts)
    begin = ["disa-predict", "--config", f"fashion/{family}"]
    text = command_text([*begin, *setting.options(choices)])
    program, *options = shlex.split(text.replace("\\\n", ""))
    assert program == "disa-predict" and all(line.strip() for line in text.splitlines())
    assert module_of(*options).sampling == setting.sampling(choices)
    assert (KEPT in text) is False
