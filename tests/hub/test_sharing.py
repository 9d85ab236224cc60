"""Models that are written for others and read again; repositories of Hugging Face, from its library's cache."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from disa_framework import SamplingConfig, generate
from disa_framework.cli.predict import predict
from disa_framework.hub import load_model, push_sampling, push_to_hub, repository, save_pretrained, shared_sampling
from disa_framework.models import MAR, XAR, ARDiffusionModel, CausalAR, FlowAR
from disa_framework.module import ARDiffusionModule
from disa_framework.resuming import digest_of
from disa_framework.schedules import Constant, Linear, PerStage
from disa_framework.solvers import DPMSolverPP, Euler, RectifiedFlow
from disa_framework.toy.mixture import MixtureAR
from tests.models.test_causal import tiny as tiny_causal
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS: dict[type[ARDiffusionModel], Callable[[], ARDiffusionModel]] = {
    MAR: tiny_mar,
    CausalAR: tiny_causal,
    FlowAR: tiny_flowar,
    XAR: tiny_xar,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's cache with one repository, `me/mar`, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = folder / "models--me--mar"
    save_pretrained(tiny_mar(), repo / "snapshots" / COMMIT, SamplingConfig(Constant(2), num_stages=3))
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_what_is_read_draws_what_was_written(kind: type[ARDiffusionModel], tmp_path: Path) -> None:
    model = MODELS[kind]()
    solver = Euler() if kind in (FlowAR, XAR) else DPMSolverPP()
    sampling = model.settle(SamplingConfig(Linear(3, 2), solver))
    again = load_model(save_pretrained(model, tmp_path / "shared", sampling))
    assert type(again) is kind and SamplingConfig.load(tmp_path / "shared/sampling.yaml") == sampling
    labels = torch.arange(2) % model.num_classes
    assert torch.equal(generate(again, labels, sampling), generate(model.eval(), labels, sampling))
    described = json.loads((tmp_path / "shared/config.json").read_text())
    assert described["class_path"].endswith(kind.__name__) and described["init_args"]


def test_a_copy_knows_what_it_was_made_with() -> None:
    model = tiny_mar()
    assert copy.deepcopy(model).made_with == model.made_with and model.made_with["num_classes"] == model.num_classes


def test_what_a_model_was_made_with_is_no_part_of_a_runs_identity() -> None:
    model = tiny_mar()
    before = digest_of(model)
    model.made_with["label_dropout"] = 0.5
    assert digest_of(model) == before


def test_the_card_says_how_to_draw(tmp_path: Path) -> None:
    sampling = SamplingConfig(Constant(4), num_stages=2)
    save_pretrained(tiny_mar(), tmp_path, sampling, name="me/mar", about="Trained on nothing.")
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "disa_framework"
    assert "Trained on nothing." in text and "hf:me/mar" in text and "| head evaluations | 8 |" in text


def test_what_has_no_plain_description_is_refused(tmp_path: Path) -> None:
    model = MixtureAR(process=RectifiedFlow())
    model.made_with["process"] = object()
    with pytest.raises(ValueError, match="was not made with plain values"):
        save_pretrained(model, tmp_path / "shared", SamplingConfig(Constant(2), Euler()))
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("name", ["hf:me/mar", f"hf:me/mar@{COMMIT}", "hf:me/mar@main"])
def test_a_repository_in_the_cache_needs_no_network(name: str, cache: Path) -> None:
    assert isinstance(load_model(name), MAR)
    assert SamplingConfig.load(shared_sampling(name)).stages == 3


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf:mar", ValueError, "hf:user/name"),
        ("hf:me/other", OSError, "hf:me/other cannot be fetched"),
        ("hf:me/mar@v2", OSError, "hf:me/mar@v2 cannot be fetched"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, error: type[Exception], message: str, cache: Path) -> None:
    with pytest.raises(error, match=message):
        load_model(name)


def test_a_command_draws_with_weights_and_shared_sampling_a_repository(cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    described = {"class_path": "MAR", "init_args": tiny_mar().made_with}
    config.write_text(yaml.safe_dump({"model": described}))
    asked = ["--config", str(config), "--ckpt_path", "hf:me/mar", "--sampling", "hf:me/mar"]
    folder = predict([*asked, "--num_images", "2", "--writer", "Arrays", "--output", str(tmp_path / "drawn")])
    assert folder.facts()["head_evaluations_per_image"] == 6


@pytest.fixture
def pushed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How repositories were made, in whose place in the cache their files then are."""
    made: list[dict[str, Any]] = []

    def upload(self: Any, repo_id: str, folder_path: str, revision: str | None) -> str:
        repo = cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, repo / "snapshots" / COMMIT)
        (repo / "refs").mkdir()
        (repo / "refs/main").write_text(COMMIT)
        return f"https://huggingface.co/{repo_id}/commit/{COMMIT}"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **how: made.append({name: how}))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    return made


def test_a_model_is_pushed_whole(pushed: list[dict[str, Any]]) -> None:
    assert push_to_hub(tiny_mar(), "me/new", private=True).endswith(f"me/new/commit/{COMMIT}")
    assert pushed == [{"me/new": {"private": True, "exist_ok": True}}]
    files = {path.name for path in repository("hf:me/new").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "sampling.yaml"}


def test_a_module_is_shared_with_the_way_it_draws(pushed: list[dict[str, Any]], tmp_path: Path) -> None:
    module = ARDiffusionModule(tiny_mar(), SamplingConfig(Linear(4, 1), num_stages=3))
    module.push_to_hub("me/module", about="Trained on nothing.")
    with torch.inference_mode():
        expected = module.draw(torch.arange(2), torch.arange(2))
        folder = module.save_pretrained(tmp_path / "shared")
        for source in ("hf:me/module", folder, folder / "model.safetensors"):
            again = ARDiffusionModule.from_pretrained(source)
            assert again.sampling == module.sampling
            assert torch.equal(again.draw(torch.arange(2), torch.arange(2)), expected)
    other = ARDiffusionModule.from_pretrained("hf:me/module", sampling=SamplingConfig(Constant(2)), seed=3)
    assert other.sampling.schedule == Constant(2) and other.seed == 3


def test_a_sampling_config_is_shared_without_weights(pushed: list[dict[str, Any]]) -> None:
    found = SamplingConfig(PerStage((4, 2, 1)), num_stages=3)
    push_sampling(found, "me/recipe", tiny_mar(), about="Found by a study.")
    assert SamplingConfig.load(shared_sampling("hf:me/recipe")) == found
    card = (repository("hf:me/recipe") / "README.md").read_text()
    assert "Found by a study." in card and "| head evaluations | 7 |" in card and "--sampling hf:me/recipe" in card
    with pytest.raises(ValueError, match="num_stages must"):
        push_sampling(SamplingConfig(num_stages=100), "me/other", tiny_mar(), about="")
    assert len(pushed) == 1
