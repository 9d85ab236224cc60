"""Published files are recognized, a file that says what it holds is loaded without more, and nothing is run for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from disa_framework import Guidance, models
from disa_framework.cli.predict import predict
from disa_framework.hub import convert, load_model, loading
from disa_framework.hub.checkpoint import write_checkpoint
from disa_framework.hub.layouts import split
from disa_framework.hub.loading import recognize
from disa_framework.hub.published import PUBLISHED
from disa_framework.models import MAR, XAR, ARDiffusionModel, CausalAR, FlowAR, SphereAR
from tests.models.tiny import TINY, draw, filled, tiny_mar
from tests.models.tiny_flow import FLOWAR, SPHEREAR, XAR_OPTIONS

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "tests/golden/data/manifests"
NOVAS = {
    "nova_d48w768_sdxl1024": "nova-0.3b",
    "nova_d48w1024_sdxl1024": "nova-0.6b",
    "nova_d48w1536_sdxl1024": "nova-1.4b",
}
NAMES = {name: name.replace("vae_", "").replace("_256", "").replace("_5b", ".5b").replace("_", "-")
    for name in sorted(path.stem for path in MANIFESTS.glob("*.json"))} | NOVAS  # fmt: skip


def published(manifest: str) -> dict[str, Tensor]:
    """Keys and shapes of a published file."""
    keys = json.loads((MANIFESTS / f"{manifest}.json").read_text())["keys"]
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


LABELS = torch.tensor([0, 1])


def test_the_documentation_lists_every_published_file() -> None:
    table = [line for line in (ROOT / "docs/checkpoints.md").read_text().splitlines() if line.startswith("| `")]
    assert len(table) == len(PUBLISHED)
    for row, (name, entry) in zip(table, PUBLISHED.items(), strict=True):
        size = f"{entry.mib:,} MiB" if entry.mib else ""
        address = entry.addresses[0] if entry.url or len(entry.files) == 1 else f"https://huggingface.co/{entry.repo}"
        assert row.startswith(f"| `{name}` | {entry.description} | {size} | [") and row.endswith(f"]({address}) |")


# --- recognizing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", NAMES)
def test_a_published_file_is_recognized(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # which it needs for no family
    assert recognize(split(published(manifest))[0], "file.pth") == NAMES[manifest]


def test_every_published_model_has_a_manifest() -> None:
    assert {name for name, entry in PUBLISHED.items() if entry.constructor} == set(NAMES.values())
    assert PUBLISHED["mar-base"].model["class_path"] == "disa_framework.models.mar_base"  # in files that there are


def test_a_file_of_another_size_is_compared_with_the_nearest() -> None:
    weights = published("mar_large")
    del weights["encoder_norm.bias"]
    weights["class_emb.weight"] = torch.empty(10, 1024, device="meta")
    nearest = (
        r"^file\.pth is like mar-large, but it lacks encoder_norm\.bias \[1024\]; it has other shapes: "
        r"class_emb\.weight \[10, 1024\] for \[1000, 1024\]\. .*say which model it is: disa-convert --model"
    )
    with pytest.raises(ValueError, match=nearest):
        recognize(weights, "file.pth")
    with pytest.raises(ValueError, match="of no published model, its keys are weight; say which"):
        recognize({"weight": torch.ones(1)}, "file.pth")


# --- loading ----------------------------------------------------------------------------------------------


def test_a_published_file_is_loaded_without_being_told_what_it_is(tmp_path: Path) -> None:
    shapes = json.loads((MANIFESTS / "mar_base.json").read_text())["keys"]
    averaged, trained = ({k: torch.tensor(value).expand(s) for k, s in shapes.items()} for value in (0.5, 2.0))
    torch.save({"model": trained, "model_ema": averaged, "epoch": 799}, tmp_path / "checkpoint-last.pth")
    before = torch.random.get_rng_state()
    model = load_model(tmp_path / "checkpoint-last.pth")
    assert isinstance(model, MAR) and not model.training and model.encoder_norm.weight.eq(0.5).all()
    assert torch.equal(torch.random.get_rng_state(), before)


CAUSAL = {
    "latent_size": 4, "latent_channels": 1, "patch_size": 2, "num_classes": 3, "width": 16, "depth": 1, "heads": 2,
    "head_depth": 1, "head_width": 16,
}  # fmt: skip
FAMILIES: dict[str, tuple[type[ARDiffusionModel], dict[str, Any]]] = {
    "MAR": (MAR, TINY), "FlowAR": (FlowAR, FLOWAR), "XAR": (XAR, XAR_OPTIONS), "CausalAR": (CausalAR, CAUSAL),
    "SphereAR": (SphereAR, SPHEREAR),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_draws_what_the_saved_one_did(name: str, tmp_path: Path) -> None:
    family, options = FAMILIES[name]
    model, path = filled(family(**options), 0.2, torch.Generator().manual_seed(0)), tmp_path / "model.safetensors"
    described = {"class_path": f"disa_framework.models.{name}", "init_args": options}
    write_checkpoint(path, model.state_dict(), described)
    loaded = load_model(path)
    assert torch.equal(draw(loaded, LABELS), draw(model, LABELS))
    assert all(p.data_ptr() % 64 == 0 for p in loaded.parameters())  # on which rounding depends in larger models
    buffers = dict(model.named_buffers())  # whether or not files hold them
    assert all(torch.equal(t, buffers[k]) for k, t in loaded.named_buffers())
    write_checkpoint(path, {k: t.bfloat16() for k, t in model.state_dict().items()}, described)
    assert load_model(path).dtype == torch.bfloat16


@pytest.mark.parametrize("given", [False, True])
def test_a_loaded_model_multiplies_as_fast_as_can_be(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(loading, "use_fast_products", seen.append)
    described = {"class_path": "disa_framework.models.MAR", "init_args": TINY}
    write_checkpoint(tmp_path / "m.safetensors", tiny_mar().state_dict(), described)
    assert [load_model(tmp_path / "m.safetensors", tiny_mar() if given else None)] == seen


def test_weights_go_into_a_given_model(tmp_path: Path) -> None:
    source, target = tiny_mar(), tiny_mar(std=0.1).train()
    torch.save(source.state_dict(), tmp_path / "mar.pth")
    assert load_model(tmp_path / "mar.pth", target) is target
    assert not target.training and torch.equal(draw(target, LABELS), draw(source, LABELS))
    with pytest.raises(ValueError, match=r"does not fit the MAR .* class_emb\.weight \[3, 16\] for \[5, 16\]"):
        load_model(tmp_path / "mar.pth", tiny_mar(num_classes=5))


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "builtins.eval", "torch.nn.Linear", "disa_framework.hub.checkpoint.os",
        "disa_framework.hub.loading.import_module", "disa_framework.hub.loading.nn.Linear",
        "disa_framework.nn.flow_head.nn", "disa_framework.files.write_atomically",
        "disa_framework.nowhere.Model", "disa_framework.models.Nothing", "mar",
    ],
)  # fmt: skip
def test_a_file_can_name_nothing_but_a_model_of_the_package(path: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.safetensors", tiny_mar().state_dict(), {"class_path": path, "init_args": {}})
    with pytest.raises(ValueError, match=rf"^{path} is no model of disa_framework: build it yourself"):
        load_model(tmp_path / "m.safetensors")
    load_model(tmp_path / "m.safetensors", tiny_mar())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MAR", {"sides": 3}, r"MAR does not take \{'sides': 3\}: .*unexpected keyword argument"),
        ("MAR", {**TINY, "num_classes": 4}, r"does not fit the MAR .*class_emb\.weight \[3, 16\] for \[4, 16\]"),
        ("ARDiffusionModel", {}, "ARDiffusionModel does not take .*abstract"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    described = {"class_path": f"disa_framework.models.{name}", "init_args": options}
    write_checkpoint(tmp_path / "m.safetensors", tiny_mar().state_dict(), described)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m.safetensors")


def test_arguments_that_a_file_cannot_know_are_added(tmp_path: Path) -> None:
    described = {"class_path": "disa_framework.models.MAR", "init_args": TINY}
    write_checkpoint(tmp_path / "m.safetensors", tiny_mar().state_dict(), described)
    loaded = load_model(tmp_path / "m.safetensors", diffusion_batch_mul=7)
    assert isinstance(loaded, MAR) and loaded.diffusion_batch_mul == 7


@pytest.mark.parametrize("folder", ["tokenizers", "models"])  # where it is, and where files of version 0.1 say it is
def test_an_autoencoder_is_not_taken_for_a_model(folder: str, tmp_path: Path) -> None:
    options = {"channels": 32, "multipliers": (1,), "blocks": 1}
    described = {"class_path": f"disa_framework.{folder}.Autoencoder", "init_args": options}
    save_file({"quant_conv.weight": torch.ones(1)}, tmp_path / "v.safetensors",
        {"disa_framework": json.dumps({"format": 1, **described})})  # fmt: skip
    with pytest.raises(ValueError, match=r"give it to disa_framework\.tokenizers\.Autoencoder\(weights"):
        load_model(tmp_path / "v.safetensors")


# --- the paper's settings ---------------------------------------------------------------------------------

PAPER: dict[str, tuple[int | None, tuple[int, int], int, tuple[float, str, list[float]], str]] = {
    # stages, annealed steps, constant steps of the baseline, guidance, solver
    "mar/base": (64, (50, 5), 100, (2.9, "linear", [0, 1]), "DDPM"),
    "mar/large": (64, (50, 5), 100, (3.0, "linear", [0, 1]), "DDPM"),
    "mar/huge": (64, (50, 5), 100, (3.3, "linear", [0, 1]), "DDPM"),
    "flowar/small": (None, (25, 15), 25, (4.2, "linear", [0, 0.9]), "Euler"),
    "flowar/large": (None, (25, 15), 25, (2.4, "linear", [0, 0.9]), "Euler"),
    "flowar/huge": (None, (50, 15), 50, (2.4, "linear", [0, 0.7]), "Euler"),
    "xar/base": (None, (50, 15), 50, (2.7, "linear", [0, 1]), "EulerMaruyama"),
    "xar/large": (None, (50, 15), 50, (2.3, "linear", [0, 1]), "EulerMaruyama"),
    "xar/huge": (None, (50, 15), 50, (2.2, "linear", [0, 1]), "EulerMaruyama"),
    "harmon/0_5b": (64, (50, 5), 50, (3.0, "constant", [0, 1]), "DDPM"),
    "harmon/1_5b": (64, (50, 5), 50, (3.0, "constant", [0, 1]), "DDPM"),
    "unipic/1_5b": (32, (50, 5), 100, (3.0, "constant", [0, 1]), "DDPM"),
}
GRIDS = {
    "DDPM": ("Spaced", {"clip": 950}),
    "Euler": ("Halves", {"uniform_at": 50}),
    "EulerMaruyama": ("Uniform", {"last": 0.04}),
}


EMIGM = {
    "emigm/xsmall": (range(11, 14), range(51, 104)),
    "emigm/small": (range(11, 14), range(51, 104)),
    "emigm/base": (range(11, 14), range(76, 121)),
    "emigm/large": (range(11, 14), range(51, 104)),
    "emigm/huge": (range(9, 12), range(38, 89)),
    **{f"emigm/{size}-512": (range(10, 13), range(32, 48)) for size in ("xsmall", "small", "base", "large")},
}
"""Guided stages of eMIGM (arXiv 2503.07197): of few, and of many."""


SPHERE = {"spherear/b": 4.5, "spherear/l": 4.6, "spherear/h": 4.5}
"""Guidance of SphereAR (arXiv 2509.24335)."""
NOVA = ("nova/0_3b", "nova/0_6b", "nova/1_4b")


def configured(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A configuration, as the command reads it."""
    with pytest.raises(SystemExit):
        predict(["--config", name, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_every_published_model_has_a_configuration() -> None:
    configs = {entry.config: entry.model for entry in PUBLISHED.values() if entry.config}
    assert configs.keys() == {*PAPER, *EMIGM, *NOVA, *SPHERE}


@pytest.mark.parametrize("name", PAPER)
def test_configurations_are_the_papers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stages, (early, late), constant, (scale, ramp, interval), solver = PAPER[name]
    annealed, baseline = configured(name, capsys), configured(f"{name}-baseline", capsys)
    (entry,) = [entry for entry in PUBLISHED.values() if entry.config == name]
    for config in (annealed, baseline):
        assert config["model"]["class_path"] == entry.model["class_path"]
        everywhere = {"interval": interval, "stages": [0.0, 1.0], "reuse": 1, "start": 1.0}
        assert config["guidance"] == {"scale": scale, "schedule": ramp, **everywhere}
        assert config["solver"]["class_path"] == f"disa_framework.solvers.{solver}"
    assert annealed["num_stages"] == stages
    assert annealed["schedule"]["class_path"].endswith(".Linear")
    assert annealed["schedule"]["init_args"] == {"early": early, "late": late}
    assert baseline["schedule"]["class_path"].endswith(".Constant")
    assert baseline["schedule"]["init_args"] == {"steps": constant}
    grid, options = GRIDS[solver]
    expected = {"class_path": f"disa_framework.solvers.{grid}", "init_args": options}
    assert annealed["solver"]["init_args"]["grid"] == expected
    if name.startswith(("mar/", "unipic/")):  # whose baselines start from the last timestep
        expected = {**expected, "init_args": {"clip": None}}
    if name.startswith("mar/"):
        stages = 256
    assert baseline["num_stages"] == stages and baseline["solver"]["init_args"]["grid"] == expected


@pytest.mark.parametrize("name", EMIGM)
def test_configurations_of_emigm_are_the_published_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = [entry for entry in PUBLISHED.values() if entry.config == name]
    many = 64 if name.endswith("512") else 128
    for form, stages, steps, guided in ((name, 16, 8, EMIGM[name][0]), (f"{name}-{many}", many, 14, EMIGM[name][1])):
        config = configured(form, capsys)
        assert config["model"]["class_path"] == entry.model["class_path"]
        assert config["num_stages"] == stages and config["schedule"]["init_args"] == {"steps": steps}
        guidance = Guidance(**config["guidance"])
        assert guidance == Guidance(4.0, "constant", stages=guidance.stages)
        assert [k for k in range(stages) if guidance.acts_at(k, stages)] == [*guided]
        grid = {
            "class_path": "disa_framework.solvers.LogSNR",
            "init_args": {"first": 0.995, "last": 0.0, "to_clean": False},
        }
        assert config["solver"]["init_args"] == {"order": 3, "grid": grid, "stretch": pytest.approx(1000 / 996)}
        assert config["stage_sizes"]["class_path"].endswith("BinomialSizes")


@pytest.mark.parametrize("name", SPHERE)
def test_configurations_of_spherear_are_the_published_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = [entry for entry in PUBLISHED.values() if entry.config == name]
    config = configured(name, capsys)
    assert config["model"]["class_path"] == entry.model["class_path"]
    assert config["schedule"]["class_path"].endswith(".Constant")
    assert config["schedule"]["init_args"] == {"steps": 101}
    assert Guidance(**config["guidance"]) == Guidance(SPHERE[name], "linear")
    solver = config["solver"]["init_args"]
    assert config["solver"]["class_path"].endswith(".EulerMaruyama") and solver["final_step"] == "flow"
    assert solver["grid"]["init_args"] == {"last": 0.04}


def test_spherear_is_loaded_without_its_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = filled(SphereAR(**SPHEREAR), 0.2, torch.Generator().manual_seed(0))
    vae = {"vae.quant_proj.weight": torch.ones(17, 2), "vae.encoder.norm.weight": torch.ones(2)}
    averaged, trained = ({**vae, **{k: f * t for k, t in saved.state_dict().items()}} for f in (1.0, 2.0))
    torch.save({"model": trained, "ema": averaged, "steps": 7}, tmp_path / "SphereAR_B.pt")
    monkeypatch.setattr(models, "spherear_b", lambda: SphereAR(**SPHEREAR))
    loaded = load_model(tmp_path / "SphereAR_B.pt")
    converted = convert(tmp_path / "SphereAR_B.pt", tmp_path / "b.safetensors")
    assert converted.name == "spherear-b"
    for model in (loaded, load_model(tmp_path / "b.safetensors")):
        assert torch.equal(draw(model, LABELS), draw(saved, LABELS))
    with pytest.raises(ValueError, match="no KL autoencoder"):
        convert(tmp_path / "SphereAR_B.pt", tmp_path / "c.safetensors", vae=tmp_path / "v.safetensors")


@pytest.mark.parametrize("name", NOVA)
def test_configurations_of_nova_are_the_published_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = [entry for entry in PUBLISHED.values() if entry.config == name]
    forms = ((name, 64, 5.0), (f"{name}-128", 128, 7.0), (f"{name}-annealed", 64, 5.0))
    for form, stages, scale in forms:
        config = configured(form, capsys)
        assert config["model"]["class_path"] == entry.model["class_path"] and config["num_stages"] == stages
        assert Guidance(**config["guidance"]) == Guidance(scale, "constant")
        steps = {"early": 25, "late": 5} if form.endswith("annealed") else {"steps": 25}
        assert config["schedule"]["init_args"] == steps
        assert config["solver"]["class_path"] == "disa_framework.solvers.Euler"
        assert config["solver"]["init_args"]["grid"]["init_args"] == {"last": 0.001}  # of a scheduler without a shift
        assert config["tokenizer"]["class_path"].endswith("KLAutoencoder")
