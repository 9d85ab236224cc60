"""Harmon: what the language model is given, at which size images are drawn, and that prompts matter."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from disa_framework import Guidance
from disa_framework.models import ARDiffusionModel, Harmon, harmon_0_5b, harmon_1_5b
from disa_framework.models.harmon import Qwen2, Vocabulary, request, resize_table
from tests.models.tiny import TINY, begin, calls, draw
from tests.models.tiny_harmon import PROMPTS, TINY_QWEN, VOCABULARY, save_tokenizer, tiny_harmon

MANIFESTS = Path(__file__).parents[1] / "golden" / "data" / "manifests"


@pytest.fixture
def words(tmp_path: Path) -> str:
    """Folder of a tokenizer."""
    return save_tokenizer(tmp_path / "words")


@contextmanager
def language_inputs(model: Harmon) -> Iterator[list[dict[str, Any]]]:
    """What the language model is given meanwhile."""
    inputs: list[dict[str, Any]] = []
    handle = model.llm.model.register_forward_pre_hook(lambda _, __, given: inputs.append(given), with_kwargs=True)
    yield inputs
    handle.remove()


# --- language ---------------------------------------------------------------------------------------------


def test_a_prompt_is_put_as_the_language_model_was_trained_to_read_it(words: str) -> None:
    assert request("a red cat") == ("<|im_start|>user\nGenerate an image: a red cat<|im_end|>\n<|im_start|>assistant\n")
    assert request(None) == "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n"
    read = "<|im_start|> user Generate an image : a red cat <|im_end|> <|im_start|> assistant"
    ids, lengths = tiny_harmon(words).pad(["a red cat", None])
    assert ids[0].tolist() == [VOCABULARY[word] for word in read.split()]
    assert lengths.tolist() == [12, 9]


def test_a_vocabulary_reads_words_as_the_tokenizer_of_transformers_does(words: str) -> None:
    vocabulary = Vocabulary(("a", "red", "blue", "cat", "dog", "on", "the", "moon"))
    own, theirs = vocabulary.ids, tiny_harmon(words).tokenize([None, *PROMPTS])
    name = {number: word for word, number in VOCABULARY.items()}
    read = tiny_harmon(vocabulary).tokenize([None, *PROMPTS])
    assert read == [[own[name[number]] for number in ids] for ids in theirs]


@torch.inference_mode()
def test_prompts_are_read_once_and_every_stage_reads_the_visible_tokens_and_then_the_buffer(words: str) -> None:
    model = tiny_harmon(words)
    S = model.mar.buffer_size
    with language_inputs(model) as inputs:
        draw(model, PROMPTS[:2], num_stages=4, guidance=Guidance(3.0))
    prompt, *stages = inputs
    lengths = model.pad([*PROMPTS[:2], None, None])[1]
    assert prompt["input_ids"].shape == (4, lengths.max())
    assert len(stages) == 4
    for given, visible in zip(stages, (0, 2, 5, 10), strict=True):
        assert given["inputs_embeds"].shape == (4, visible + S, TINY_QWEN.hidden_size)
        # Positions go on where the real prompt ends.
        assert torch.equal(given["position_ids"], lengths[:, None] + torch.arange(visible + S))
        # The buffer slots, whose content no prompt and hence no branch changes, come last.
        torch.testing.assert_close(given["inputs_embeds"][:2], given["inputs_embeds"][2:])


@torch.inference_mode()
def test_the_language_model_is_causal_over_the_image_and_blind_to_padding(words: str) -> None:
    model = tiny_harmon(words)
    ids, lengths = model.pad(["cat", "a blue dog on the moon"])
    x = torch.randn(1, 6, TINY_QWEN.hidden_size, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1)

    def followed(ids: Tensor, x: Tensor) -> Tensor:
        return model.follow(x, model.read(ids, lengths))

    out = followed(ids, x)
    # All of it is the language model's answer to the sequence without padding.
    sequence = torch.cat((model.llm.model.embed_tokens(ids[:1, : lengths[0]]), x[:1]), dim=1)
    whole = model.llm.model(inputs_embeds=sequence).last_hidden_state
    torch.testing.assert_close(out[:1], whole[:, lengths[0] :])
    padding = torch.arange(ids.shape[1]) >= lengths[:, None]
    assert torch.equal(followed(ids.masked_fill(padding, 7), x), out)


@torch.inference_mode()
def test_the_backbone_reads_visible_tokens_alone_and_in_raster_order(words: str) -> None:
    model = tiny_harmon(words)
    context, tokens = begin(model, PROMPTS[:2], guidance=Guidance(3.0)).context, torch.randn(2, 16, 2)
    visible, drawn = torch.tensor([[0, 3, 5, 8]]).expand(2, -1), torch.tensor([[1, 2, 7]]).expand(2, -1)
    z = model.backbone(tokens, context, visible, drawn)
    assert torch.equal(model.backbone(tokens, context, visible[:, [2, 0, 3, 1]], drawn), z)
    masked, seen = torch.full_like(tokens, 100.0), tokens.clone()
    masked[:, [0, 3, 5, 8]] = tokens[:, [0, 3, 5, 8]]
    assert torch.equal(model.backbone(masked, context, visible, drawn), z)
    seen[:, 5] += 1.0
    assert not torch.allclose(model.backbone(seen, context, visible, drawn), z)


def test_the_encoder_runs_once_for_both_branches(words: str) -> None:
    model, rows = tiny_harmon(words), []
    model.mar.encoder_norm.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    draw(model, PROMPTS[:3], num_stages=4, guidance=Guidance(3.0))
    assert rows == [3] * 4


def test_every_prompt_is_drawn_its_own_way(words: str) -> None:
    images = draw(tiny_harmon(words), PROMPTS, num_stages=4, indices=torch.zeros(4, dtype=torch.int64))
    assert len(images.flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("place", range(2))
def test_a_guided_image_does_not_depend_on_the_length_of_other_prompts(place: int, words: str) -> None:
    model, options = tiny_harmon(words), {"guidance": Guidance(3.0, "constant"), "num_stages": 4}
    prompts = ["cat", "a blue dog on the moon and on the red moon"]
    batch = draw(model, prompts, indices=torch.arange(2), **options)
    alone = draw(model, prompts[place : place + 1], indices=torch.tensor([place]), **options)
    torch.testing.assert_close(batch[place : place + 1], alone, rtol=0, atol=1e-5 * alone.abs().max().item())


def test_both_attentions_of_transformers_agree(words: str) -> None:
    images = [draw(tiny_harmon(words, attn_implementation=name), PROMPTS, num_stages=4, guidance=Guidance(3.0))
        for name in ("eager", "sdpa")]  # fmt: skip
    torch.testing.assert_close(*images, rtol=0, atol=1e-5 * images[0].abs().max().item())


def test_it_draws_in_half_precision(words: str) -> None:
    model = tiny_harmon(words).to(torch.bfloat16)
    latents = draw(model, PROMPTS, guidance=Guidance(3.0))
    assert latents.dtype == torch.bfloat16 and latents.isfinite().all()


def test_outside_of_its_stages_guidance_costs_the_language_model_nothing(words: str) -> None:
    model = tiny_harmon(words)
    with calls(model.llm.model.norm) as read:
        draw(model, PROMPTS[:2], num_stages=4, guidance=Guidance(3.0, stages=(0.5, 0.75)))
    assert [len(x) for x in read] == [4, 2, 4, 4, 2]  # the prompts, then the stages


# --- image sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [(None, (4, 4)), (96, (6, 6)), ((48, 96), (3, 6)), ((16, 32), (1, 2))])
def test_an_image_has_the_size_that_was_asked_for(size: Any, grid: tuple[int, int], words: str) -> None:
    model = tiny_harmon(words, image_size=size)
    assert model.latent_shape == (2, *grid)
    latents = draw(model, PROMPTS, num_stages=2)
    assert latents.shape == (4, 2, *grid)
    assert model.train().loss(latents.clone(), PROMPTS).isfinite()


def test_positions_are_interpolated_between_those_of_the_square_and_the_buffer_keeps_its_own() -> None:
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    square = torch.stack((row, column), dim=-1).view(1, 16, 2)
    buffer = torch.randn(1, 3, 2)
    table = torch.cat((buffer, square), dim=1)
    resized = resize_table(table, 3, (8, 6))
    # Pixel centres coincide; beyond the outer ones, the outer value goes on.
    rows = ((torch.arange(8.0) + 0.5) * 4 / 8 - 0.5).clamp(0, 3)
    columns = ((torch.arange(6.0) + 0.5) * 4 / 6 - 0.5).clamp(0, 3)
    assert torch.equal(resized[:, :3], buffer)
    torch.testing.assert_close(resized[0, 3:], torch.cartesian_prod(rows, columns))
    assert resize_table(table, 3, (4, 4)) is table


@pytest.mark.parametrize("size", [0, -16, 40, (32, 40), (0, 32)], ids=str)
def test_an_image_of_broken_tokens_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="image_size must be multiples of 16 pixels, got"):
        tiny_harmon(None, image_size=size)


# --- training ---------------------------------------------------------------------------------------------


def test_a_dropped_prompt_has_no_effect(words: str) -> None:
    model, latents = tiny_harmon(words, label_dropout=1.0), torch.randn(2, 2, 4, 4)

    def loss(prompts: list[str] | None) -> Tensor:
        return model.loss(latents, prompts, torch.Generator().manual_seed(0))

    assert not torch.allclose(loss(PROMPTS[:2]), loss(PROMPTS[2:]))
    model.train()
    torch.testing.assert_close(loss(PROMPTS[:2]), loss(PROMPTS[2:]))
    torch.testing.assert_close(loss(PROMPTS[:2]), loss(None))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_whatever_is_trained_takes_a_gradient_and_a_frozen_language_model_passes_it_on(
    frozen: bool, words: str
) -> None:
    model = tiny_harmon(words, freeze_llm=frozen)
    model.loss(torch.randn(2, 2, 4, 4), PROMPTS[:2], torch.Generator().manual_seed(0)).backward()
    for name, parameter in model.named_parameters():
        still = name.startswith("mar.class_emb") or (frozen and name.startswith("llm."))
        taken = parameter.grad is not None and bool(parameter.grad.any())
        assert taken != still, name


# --- published sizes, and where weights come from -----------------------------------------------------------

SIZES: dict[str, tuple[Callable[[], Harmon], int]] = {
    "harmon_0_5b": (harmon_0_5b, 494_032_768),
    "harmon_1_5b": (harmon_1_5b, 1_543_714_304),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_published_size_has_exactly_the_published_keys_and_shapes(name: str) -> None:
    build, language_parameters = SIZES[name]
    with torch.device("meta"):
        model = build()
    published = json.loads((MANIFESTS / f"{name}.json").read_text())["keys"]
    own = {key: list(t.shape) for key, t in model.state_dict().items() if not key.startswith("llm.")}
    assert own == {key: shape for key, shape in published.items() if not key.startswith("vae.")}
    assert sum(p.numel() for p in model.llm.parameters()) == language_parameters
    assert model.latent_shape == (16, 32, 32)


def test_a_trained_language_model_comes_from_its_folder_with_its_tokenizer(words: str) -> None:
    config = Qwen2Config(**vars(TINY_QWEN))
    trained = Qwen2ForCausalLM(config).bfloat16()
    trained.save_pretrained(words)
    model = Harmon(tiny_harmon(None).mar, words)
    assert all(torch.equal(w.float(), model.llm.state_dict()[name]) for name, w in trained.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert draw(model.eval(), PROMPTS).isfinite().all()


def test_a_configuration_builds_it(tmp_path: Path, words: str) -> None:
    mar = {"class_path": "MAR", "init_args": {**TINY, "patch_size": 1}}
    arguments = {"mar": mar, "llm": vars(TINY_QWEN), "tokenizer": words, "image_size": [32, 64]}
    config = tmp_path / "harmon.yaml"
    config.write_text(yaml.safe_dump({"model": {"class_path": "Harmon", "init_args": arguments}}))
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ARDiffusionModel, "model")
    model = parser.instantiate(parser.parse_args(["--config", str(config)])).model
    assert isinstance(model, Harmon)
    assert draw(model.eval(), PROMPTS).shape == (4, 1, 2, 4)


# --- errors -----------------------------------------------------------------------------------------------


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"prompts need transformers: pip install 'disa-framework\[harmon\]'"):
        tiny_harmon(None)


def test_without_a_tokenizer_the_error_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no tokenizer: give its folder or hub name, such as Qwen"):
        draw(tiny_harmon(None), PROMPTS)
    with pytest.raises(OSError, match=f"AutoTokenizer finds none at '{tmp_path}': give a folder or a hub name"):
        draw(tiny_harmon(str(tmp_path)), PROMPTS)
    with pytest.raises(OSError, match=f"AutoModelForCausalLM finds none at '{tmp_path}': give a folder"):
        tiny_harmon(None, llm=str(tmp_path))


def test_a_tokenizer_of_another_language_model_is_refused(words: str) -> None:
    few = Qwen2(**{**vars(TINY_QWEN), "vocab_size": 8})
    with pytest.raises(ValueError, match=r"has the id \d+, the language model knows 8: they do not belong together"):
        draw(tiny_harmon(words, llm=few), PROMPTS)
