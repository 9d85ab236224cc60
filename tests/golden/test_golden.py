"""The recorded runs that ship with the tests are reproduced."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from disa_framework import models
from tests.golden.__main__ import main
from tests.golden.case import TOLERANCE
from tests.golden.replay import replay

DATA = Path(__file__).parent / "data"
CASES = sorted(path.parent for path in DATA.glob("*/case.json"))


@pytest.mark.filterwarnings("ignore:no integer stride")
@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_a_recorded_run_is_reproduced(folder: Path) -> None:
    report = replay(folder)
    assert report.passes, {k: v for k, v in report.errors.items() if not v <= TOLERANCE}
    assert {"latents", "gradients"} & report.errors.keys()


def test_a_wrong_record_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "case"
    shutil.copytree(DATA / "mar_disa_twostage_cfg1", case)
    shutil.copytree(DATA / "_weights", tmp_path / "_weights")
    io = load_file(case / "io.safetensors")
    io["latents"] += 1e-3 * io["latents"].abs().max()
    save_file(io, case / "io.safetensors")
    assert main([str(case)]) == 1
    assert "FAIL case" in capsys.readouterr().out


def test_the_command_names_each_case_and_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "mar_train"), str(DATA / "mar_disa_uncond")]) == 0
    out = capsys.readouterr().out
    assert "ok   mar_train:" in out and "ok   mar_disa_uncond:" in out and "latents=" in out


NOVAS = {
    "nova_d48w768_sdxl1024": "nova_0_3b",
    "nova_d48w1024_sdxl1024": "nova_0_6b",
    "nova_d48w1536_sdxl1024": "nova_1_4b",
}
PUBLISHED = (
    "mar_base", "mar_large", "mar_huge", "flowar_small", "flowar_large", "flowar_huge", "xar_base", "xar_large",
    "xar_huge", "emigm_xsmall_256", "emigm_small_256", "emigm_base_256", "emigm_large_256", "emigm_huge_256",
    "emigm_xsmall_512", "emigm_small_512", "emigm_base_512", "emigm_large_512", "nova_d48w768_sdxl1024",
    "nova_d48w1024_sdxl1024", "nova_d48w1536_sdxl1024", "spherear_b", "spherear_l", "spherear_h",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_exactly_the_published_keys_and_shapes(name: str) -> None:
    manifest = json.loads((DATA / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        model = getattr(models, NOVAS.get(name, name.removesuffix("_256")))()
    autoencoder = {name: shape for name, shape in manifest["keys"].items() if name.startswith("vae.")}  # SphereAR's
    assert {name: list(t.shape) for name, t in model.state_dict().items()} | autoencoder == manifest["keys"]
    others = sum(math.prod(shape) for name, shape in autoencoder.items() if name not in manifest["buffers"])
    assert sum(p.numel() for p in model.parameters()) + others == manifest["num_parameters"]


@pytest.mark.parametrize("name", ["harmon_1_5b", "unipic_1_5b"])
def test_a_published_harmon_has_what_is_published_beside_its_language_model(name: str) -> None:
    manifest = json.loads((DATA / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        model = getattr(models, name)()
    own = {name: list(t.shape) for name, t in model.state_dict().items() if not name.startswith("llm.")}
    others = ("vae.", "siglip2_proj.")  # which drawing has no use for
    assert own == {name: shape for name, shape in manifest["keys"].items() if not name.startswith(others)}
    assert model.latent_shape == (16, *({"harmon": (32, 32), "unipic": (64, 64)}[name[:6]]))
