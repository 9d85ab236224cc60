"""`disa-convert` says what a file holds, and what it writes is read without being told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from disa_framework import hub
from disa_framework.cli.convert import convert
from disa_framework.hub import load_model
from disa_framework.hub.checkpoint import load_weights
from disa_framework.tokenizers import Autoencoder
from tests.models.tiny import TINY, draw, tiny_mar
from tests.models.tiny_harmon import TINY_QWEN, save_tokenizer, tiny_harmon

KL16 = Path(__file__).parents[1] / "golden/data/manifests/vae_kl16.json"


def kl16() -> dict[str, Tensor]:
    """Weights of the published autoencoder's shapes, which take no room in a file."""
    keys = json.loads(KL16.read_text())["keys"]
    return {key: torch.tensor(0.5).expand(shape) for key, shape in keys.items()}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint as disa-fit writes it, and beside it the configuration."""
    weights = {f"model.{k}": t for k, t in tiny_mar().state_dict().items()}
    torch.save({"state_dict": weights, "current_model_state": {}, "epoch": 3}, tmp_path / "last.ckpt")
    content = {
        "model": {"class_path": "disa_framework.models.MAR", "init_args": TINY},
        "schedule": {"class_path": "disa_framework.schedules.Linear", "init_args": {"early": 10, "late": 2}},
        "guidance": {"scale": 2.0}, "num_stages": 4, "ckpt_path": None, "trainer": {"max_steps": 3},
        "data": {"class_path": "disa_framework.toy.digits.DigitsData"},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "last.ckpt"


def test_a_converted_model_draws_what_the_trained_one_did(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "converted" / "mar.safetensors"
    convert([str(trained), str(target), "--model", str(tmp_path / "config.yaml")])
    labels = torch.tensor([0, 2])
    assert torch.equal(draw(load_model(target), labels), draw(tiny_mar(), labels))
    found, written = capsys.readouterr().out.splitlines()
    count = sum(p.numel() for p in tiny_mar().parameters()) / 1e6
    assert found == f"{trained}: checkpoint of disa-fit, averaged weights"
    assert written == (
        f"{target}: disa_framework.models.MAR, {count:.1f} million parameters in {len(tiny_mar().state_dict())} "
        "tensors, float32 as they were"
    )
    convert([str(target), str(tmp_path / "again.safetensors")])  # which says itself what it is
    assert (tmp_path / "again.safetensors").read_bytes() == target.read_bytes()


def test_python_converts_what_the_command_does(trained: Path, tmp_path: Path) -> None:
    described = {"class_path": "disa_framework.models.MAR", "init_args": TINY}
    done = hub.convert(trained, tmp_path / "m.safetensors", described)
    assert done.name is None and str(tmp_path / "m.safetensors") in done.report
    assert load_weights(tmp_path / "m.safetensors").keys() == tiny_mar().state_dict().keys()


def test_a_published_autoencoder_is_recognized_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": kl16()}, tmp_path / "kl16.ckpt")
    convert([str(tmp_path / "kl16.ckpt"), str(tmp_path / "kl16.safetensors")])
    assert "\nkl16: KL-16" in capsys.readouterr().out
    network = Autoencoder(str(tmp_path / "kl16.safetensors")).network
    assert all(parameter.eq(0.5).all() for parameter in network.parameters())


def test_a_harmon_is_converted_with_or_without_its_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = save_tokenizer(tmp_path / "words")
    model = tiny_harmon(words).bfloat16()
    torch.save({**model.state_dict(), **{f"vae.{k}": t for k, t in kl16().items()}}, tmp_path / "harmon.pth")
    mar = {**TINY, "patch_size": 1, "latent_channels": 2, "decoder_width": 24}
    config = {"class_path": "disa_framework.models.Harmon", "init_args": {
        "mar": {"class_path": "disa_framework.models.MAR", "init_args": mar}, "llm": vars(TINY_QWEN),
    }}  # fmt: skip
    (tmp_path / "harmon.yaml").write_text(yaml.safe_dump({"model": config}))
    options = [str(tmp_path / "harmon.pth"), "--model", str(tmp_path / "harmon.yaml")]
    convert([*options, str(tmp_path / "alone.safetensors")])
    assert "left out: the autoencoder, 312 tensors (write it with --vae)" in capsys.readouterr().out
    convert([*options, str(tmp_path / "both.safetensors"), "--vae", str(tmp_path / "vae.safetensors")])
    assert "bfloat16 as they were" in capsys.readouterr().out
    assert load_weights(tmp_path / "vae.safetensors").keys() == kl16().keys()
    prompts = ["a red cat", "the moon"]
    for name in ("alone", "both"):
        loaded = load_model(tmp_path / f"{name}.safetensors", tiny_harmon(words, std=0.1).bfloat16())
        assert torch.equal(draw(loaded, prompts), draw(model, prompts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["last.ckpt", "m.safetensors"], "like mar-base, but it lacks encoder_blocks.*say which model it is"),
        (["last.ckpt", "m.safetensors", "--model", "digits/mar"], r"does not fit disa_framework\.models\.MAR: it"),
        (["last.ckpt", "m.safetensors", "--model", "nowhere"], "no configuration 'nowhere'"),
        (["last.ckpt", "m.safetensors", "--model", "config.yaml", "--vae", "v.safetensors"], "no KL autoencoder"),
        (["last.ckpt", "m.pth", "--model", "config.yaml"], r"is a \.safetensors file, not m\.pth"),
        (["last.ckpt", "old.safetensors", "--model", "config.yaml"], "is there already: give another name, or --over"),
        (["half.ckpt", "m.safetensors"], r"half\.ckpt is damaged or not a checkpoint: it is cut"),
        (["unknown.pth", "m.safetensors"], "of no published model, its keys are weight"),
        (["none.pth", "m.safetensors"], r"no checkpoint at none\.pth: train one with disa-fit, fetch one"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(
    options: list[str], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., tuple[object, list[str]]],
) -> None:  # fmt: skip
    (tmp_path / "half.ckpt").write_bytes(trained.read_bytes()[: trained.stat().st_size // 2])
    torch.save({"weight": torch.ones(1)}, tmp_path / "unknown.pth")
    (tmp_path / "old.safetensors").write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    status, (line,) = refused("disa-convert", *options)
    assert status == 1 and line.startswith("disa-convert: error: ") and re.search(message, line)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_older_file_is_replaced_when_asked(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "old.safetensors"
    target.write_text("old")
    convert([str(trained), str(target), "--model", str(tmp_path / "config.yaml"), "--overwrite"])
    assert load_weights(target).keys() == tiny_mar().state_dict().keys()
