"""Drawing in bf16: how far it is from float32, what stays precise, and `--precision` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor

from disa_framework import Guidance, generate
from disa_framework.cli import bench, diagnose, predict, search
from disa_framework.cli.common import parse
from disa_framework.cli.precision import _cpu_has_bf16
from disa_framework.models import ARDiffusionModel, MixtureAR
from disa_framework.models.adaptive import RotaryEmbedding, grid_positions
from disa_framework.models.harmon import Vocabulary
from disa_framework.models.layers import flow_times
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM, Cosine, Euler
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar
from tests.models.tiny_harmon import tiny_harmon

LABELS = torch.arange(6) % 3
TOLERANCE = 0.03  # relative to the norm of float32's latents; 0.001 … 0.01 were seen
COMMANDS = {"predict": predict, "bench": bench, "search": search, "diagnose": diagnose}


def draw(model: ARDiffusionModel, bf16: bool = False) -> Tensor:
    """Latents, in bf16 as Lightning's trainer draws them."""
    solver = DDPM() if isinstance(model.process, Cosine) else Euler()
    plugin, guidance = HalfPrecision("bf16-true"), Guidance(2.0)
    if not bf16:
        return generate(model, LABELS, schedule=Constant(10), solver=solver, guidance=guidance)
    half = plugin.convert_module(deepcopy(model))
    with plugin.forward_context():
        return generate(half, LABELS, schedule=Constant(10), solver=solver, guidance=guidance)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_mar, tiny_flowar, tiny_xar], ids=["mar", "flowar", "xar"])
def test_latents_in_bf16_are_close_to_those_of_the_same_noise_in_float32(
    make: Callable[[], ARDiffusionModel],
) -> None:
    exact, rounded = draw(make()), draw(make(), bf16=True)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded.float() - exact).norm() / exact.norm() < TOLERANCE


def test_a_model_without_weights_draws_the_same_in_every_precision() -> None:
    model = MixtureAR(num_tokens=6, num_components=4, num_classes=3)
    assert torch.equal(draw(model), draw(model, bf16=True))


# --- what stays precise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [torch.nn.Module.bfloat16, torch.nn.Module.half])
def test_rotary_tables_are_not_rounded_with_the_weights(convert: Callable[[RotaryEmbedding], RotaryEmbedding]) -> None:
    positions = grid_positions(16)
    exact, rounded = RotaryEmbedding(64, positions), convert(RotaryEmbedding(64, positions))
    assert torch.equal(rounded.table(positions), exact.table(positions))
    assert torch.equal(rounded.own_table(slice(0, 256)), exact.own_table(slice(0, 256)))
    assert exact.double().freqs.dtype == torch.float64 and exact.to("meta").freqs.is_meta


def test_positions_in_the_language_model_are_not_rounded_with_the_weights() -> None:
    harmon = tiny_harmon(Vocabulary(()))
    before = {name: buffer.clone() for name, buffer in harmon.llm.named_buffers()}
    after = dict(harmon.bfloat16().llm.named_buffers())
    assert harmon.dtype == torch.bfloat16 and before.keys() == after.keys() and before
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())


def test_times_are_told_exactly_whatever_the_precision() -> None:
    steps = [Cosine().nodes(range(1000)), Euler().table(tiny_xar().process, 25).nodes]
    with HalfPrecision("bf16-true").forward_context(), torch.inference_mode():
        times = [nodes.on(torch.device("cpu")) for nodes in steps]
    assert [t.dtype for t in times] == [torch.float32] * 2 and not any(t.is_inference() for t in times)
    assert times[0].tolist() == list(range(1000))
    assert flow_times(times[1], times[1].device).tolist() == [40.0 * k for k in range(25, 0, -1)]
    assert steps[0].on(torch.device("cpu")) is times[0]


# --- on the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_precision_is_the_trainers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config_name = "mixture/search" if name == "search" else "mixture/default"
    args = ["--config", config_name, "--trainer.accelerator", "cpu"]
    for asked, has in {"32": True, "bf16": _cpu_has_bf16(), "16": False}.items():
        config = parse(COMMANDS[name]._make_parser(), [*args, "--precision", asked])
        assert config.trainer.precision == (f"{asked}-true" if has else "32-true")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == (not has)
        assert all(line.startswith(f"disa-{name}: drawing in precision 32, as ") for line in said)
    assert parse(COMMANDS[name]._make_parser(), args).trainer.precision is None
    with pytest.raises(ValueError, match=r"give either --precision bf16 or --trainer\.precision 16-true"):
        parse(COMMANDS[name]._make_parser(), [*args, "--precision", "bf16", "--trainer.precision", "16-true"])


def test_images_of_another_precision_are_not_mixed(tmp_path: Path) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", str(tmp_path)]
    asked = ["--config", "mixture/default", "--num_images", "2", "--schedule", "Constant", "--schedule.steps", "2"]
    predict.predict([*quiet, *asked, "--precision", "16"])  # which falls back to 32
    predict.predict([*quiet, *asked, "--precision", "32"])
    with pytest.raises(ValueError, match=r"other settings \(precision differ"):
        predict.predict([*quiet, *asked, "--trainer.precision", "bf16-true"])
