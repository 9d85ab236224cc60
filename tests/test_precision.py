"""Drawing in bf16: how far it is from float32, what stays precise, and `--precision` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.cli.common import make_parser, parse
from disa_framework.cli.drawing import add_drawing
from disa_framework.cli.predict import predict
from disa_framework.models import ARDiffusionModel
from disa_framework.models.harmon import Vocabulary
from disa_framework.nn.rotary import RotaryEmbedding, grid_positions
from disa_framework.nn.time import flow_times
from disa_framework.runtime.precision import lacking
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM, Euler, VPCosine
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_sphere, tiny_xar
from tests.models.tiny_harmon import tiny_harmon

LABELS = torch.arange(6) % 3
TOLERANCE = 0.03  # relative to the norm of float32's latents; 0.001 … 0.01 were seen


def draw(model: ARDiffusionModel, bf16: bool = False) -> Tensor:
    """Latents, in bf16 as Lightning's trainer draws them."""
    solver = DDPM() if isinstance(model.process, VPCosine) else Euler()
    sampling, plugin = SamplingConfig(Constant(10), solver, guidance=Guidance(2.0)), HalfPrecision("bf16-true")
    if not bf16:
        return generate(model, LABELS, sampling)
    half = plugin.convert_module(deepcopy(model))
    with plugin.forward_context():
        return generate(half, LABELS, sampling)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_mar, tiny_flowar, tiny_xar, tiny_sphere], ids=["mar", "flowar", "xar", "sphere"])
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
    steps = [VPCosine().nodes(range(1000)), Euler().table(tiny_xar().process, 25).nodes]
    with HalfPrecision("bf16-true").forward_context(), torch.inference_mode():
        times = [nodes.on(torch.device("cpu")) for nodes in steps]
    assert [t.dtype for t in times] == [torch.float32] * 2 and not any(t.is_inference() for t in times)
    assert times[0].tolist() == list(range(1000))
    assert flow_times(times[1], times[1].device).tolist() == [40.0 * k for k in range(25, 0, -1)]
    assert steps[0].on(torch.device("cpu")) is times[0]


# --- on the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [32, "bf16", 16])
def test_precision_is_the_trainers_and_what_a_device_lacks_is_told(asked: int | str) -> None:
    lack = {32: None, "bf16": lacking("bf16", "cpu"), 16: "CPUs are slow in 16"}[asked]
    with pytest.warns(UserWarning, match=f"drawing in precision 32, as {lack}") if lack else nullcontext():
        assert _parsed("--precision", str(asked)) == ("32-true" if lack else f"{asked}-true")


@pytest.mark.parametrize(
    ("units", "chosen"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True, "amx_bf16": False}, "bf16"), ({"avx512_f": True}, "32")],
    ids=["AMX", "AVX512-BF16", "neither"],
)
def test_auto_is_bf16_where_the_device_computes_in_it_and_says_so(
    units: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units, raising=False)
    with pytest.warns(UserWarning, match=f"drawing in precision {chosen}, as this"):
        assert _parsed("--precision", "auto", "--trainer.accelerator", "cpu") == f"{chosen}-true"


def test_precision_is_told_once() -> None:
    assert _parsed() is None
    with pytest.raises(ValueError, match=r"give either --precision bf16 or --trainer\.precision 16-true"):
        _parsed("--precision", "bf16", "--trainer.precision", "16-true")


def _parsed(*options: str) -> object:
    """What a command that draws tells the trainer."""
    parser = make_parser("disa-any", "Draws.")
    add_drawing(parser)
    return parse(parser, ["--config", "mixture/default", *options]).trainer.precision


@pytest.mark.filterwarnings("ignore:drawing in precision 32")
def test_images_of_another_precision_are_not_mixed(tmp_path: Path) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", str(tmp_path)]
    asked = ["--config", "mixture/default", "--num_images", "2", "--schedule", "Constant", "--schedule.steps", "2"]
    predict([*quiet, *asked, "--precision", "16"])  # which falls back to 32
    predict([*quiet, *asked, "--precision", "32"])
    with pytest.raises(ValueError, match=r"made otherwise \(precision differ"):
        predict([*quiet, *asked, "--trainer.precision", "bf16-true"])
