"""A tokenizer that does not fit a model is refused when they meet, and one with code of its own is never run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from disa_framework.models.harmon import language_model
from disa_framework.module import ARDiffusionModule
from disa_framework.tokenizers import SpaceToDepth, Tokenizer
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny import tiny_mar
from tests.models.tiny_harmon import TINY_VOCABULARY, tiny_harmon
from tests.tokenizers.tiny_autoencoder import tiny_autoencoder


@pytest.mark.parametrize(
    ("tokenizer", "latents"),
    [(lambda: tiny_autoencoder(latent_channels=3), 5), (SpaceToDepth, 3), (lambda: SpaceToDepth(3), 4)],
)
def test_a_tokenizer_for_other_latents_is_refused(tokenizer: Callable[[], Tokenizer], latents: int) -> None:
    with pytest.raises(ValueError, match=rf"the model draws \[{latents}, [^\n]*$"):
        ARDiffusionModule(tiny_mar(latent_channels=latents), tokenizer=tokenizer())


def test_a_tokenizer_of_images_is_refused_for_other_samples() -> None:
    for tokenizer in (SpaceToDepth(), tiny_autoencoder()):
        with pytest.raises(ValueError, match="the model draws"):
            tokenizer.check((5, 7))


@pytest.mark.parametrize(("patch", "margin", "folded"), [(1, 0, (2, 12, 12)), (2, 0, (8, 6, 6)), (4, 2, (32, 4, 4))])
def test_folding_and_unfolding_gives_the_image_back(patch: int, margin: int, folded: tuple[int, ...]) -> None:
    images, tokenizer = torch.rand(3, 2, 12, 12) * 2 - 1, SpaceToDepth(patch, margin)
    latents = tokenizer.encode(images)
    assert latents.shape[1:] == folded
    assert torch.equal(tokenizer.decode(latents), images)
    assert latents.min() == (-1 if margin else images.min())


@pytest.mark.parametrize("wrong", [{"patch": 0}, {"margin": -1}])
def test_folding_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        SpaceToDepth(**wrong)


def test_a_tokenizer_that_fits_is_taken() -> None:
    for channels, tokenizer in ((4, SpaceToDepth(2)), (1, tiny_autoencoder(latent_channels=1)), (2, None)):
        ARDiffusionModule(tiny_mar(latent_channels=channels), tokenizer=tokenizer)
    ARDiffusionModule(MixtureAR())


@pytest.mark.filterwarnings("ignore")
def test_code_in_the_folder_of_a_language_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crater = tmp_path / "crater"
    (tmp_path / "mine.py").write_text(f"open({str(crater)!r}, 'w')")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    auto = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    harmon = tiny_harmon(TINY_VOCABULARY)
    harmon.tokenizer_source = str(tmp_path)
    for ask in (lambda: harmon.tokenize(["a dog"]), lambda: language_model(str(tmp_path), "sdpa")):
        with pytest.raises(ValueError, match=r"has code of its own, which is not run[^\n]*$"):
            ask()
    assert not crater.exists()
