"""NOVA: what it reads, what its condition is, what its training masks, and the folder that it is published as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.hub import convert, load_model
from disa_framework.hub.checkpoint import load_into, read_checkpoint
from disa_framework.hub.diffusers import scheduled_by
from disa_framework.models.mar import TrainingDraws
from disa_framework.models.nova import sine_positions
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM, Euler, Leading, RectifiedFlow, Uniform, VPCosine
from tests.models.tiny import draw
from tests.models.tiny_harmon import PROMPTS
from tests.models.tiny_nova import DIFFUSION, FLOW, TINY_NOVA, save_folder, tiny_nova

# --- text -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_padding_stands_behind_a_text_and_alone_for_none() -> None:
    model = tiny_nova()
    states, padding = model.states(["a red", ""]), model.text_embed.weight[:4]
    assert torch.equal(states[0, :2], torch.eye(9)[:2]) and torch.equal(states[0, 2:], padding[2:])
    assert torch.equal(states[1], padding) and torch.equal(model.states([""])[0], padding)
    assert torch.equal(model.states(["a cat on the moon"]), model.states(["a cat on the"]))  # cut off


@torch.inference_mode()
def test_a_language_model_reads_prompts_and_is_in_no_state_dict(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    phi = PhiForCausalLM(config).eval()
    phi.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "red": 2, "cat": 3, "moon": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    model, own = tiny_nova(text_encoder=str(tmp_path), text_width=16), tiny_nova(text_width=16)
    states = model.states(["a red cat", "moon", ""])
    for row, ids in enumerate(([1, 2, 3], [4])):
        alone = phi.model(input_ids=torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(states[row, : len(ids)], alone[0])
    assert torch.equal(states[2], model.text_embed.weight[:4])
    assert model.state_dict().keys() == own.state_dict().keys()
    assert not any(module is model.language_model for module in model.modules())
    assert model.bfloat16().states(["moon"]).dtype == torch.bfloat16
    generate(model, ["cat"], SamplingConfig(Constant(2), Euler(), num_stages=2))


def test_what_it_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know 'green'"):
        draw(tiny_nova(), ["a green cat"])
    with pytest.raises(ValueError, match="no text_encoder: give its folder or hub name"):
        draw(tiny_nova(text_encoder=None), ["a cat"])
    assert draw(tiny_nova(text_encoder=None)).isfinite().all()  # of nothing in particular
    with pytest.raises(OSError, match="AutoTokenizer finds none at"):
        draw(tiny_nova(text_encoder=str(tmp_path)), ["a cat"])


# --- networks ---------------------------------------------------------------------------------------------


def test_positions_tell_column_and_row() -> None:
    table = sine_positions(5, 8)[0].view(5, 5, 4, 2)  # row, column, quarter, frequency
    for row, column in ((0, 0), (3, 1), (1, 4)):
        want = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
        assert table[row, column].flatten().tolist() == pytest.approx(want, abs=1e-6)


@torch.inference_mode()
def test_a_token_is_a_patch_whose_channels_lie_together() -> None:
    model, latents = tiny_nova(), torch.randn(2, 2, 8, 8)
    tokens = model.to_tokens(latents)
    assert torch.equal(tokens[:, 5], latents[:, :, 2:4, 2:4].permute(0, 2, 3, 1).flatten(1))
    embed = model.image_encoder.patch_embed
    torch.testing.assert_close(embed(tokens), embed.proj(latents).flatten(2).mT)


@torch.inference_mode()
def test_what_is_masked_is_not_seen_and_the_order_of_what_is_does_not_matter() -> None:
    model, tokens = tiny_nova(), torch.randn(2, 16, 8)
    condition, visible = model.condition(model.states(PROMPTS[:2])), torch.tensor([[3, 9, 0], [1, 2, 7]])
    drawn = torch.tensor([[4, 5], [4, 5]])
    z = model.backbone(tokens, condition, visible, drawn)
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, visible, False)
    others = torch.where(hidden[..., None], torch.randn(2, 16, 8), tokens)
    torch.testing.assert_close(model.backbone(others, condition, visible.flip(1), drawn), z)
    assert not torch.allclose(model.backbone(tokens + 1, condition, visible, drawn), z)
    assert not torch.allclose(model.backbone(tokens, condition.flip(0), visible, drawn), z)


@pytest.mark.parametrize("process", ["flow", "cosine"])
def test_the_loss_is_the_squared_error_at_the_times_that_are_drawn(process: Any) -> None:
    model, latents = tiny_nova(process=process), torch.randn(2, 2, 8, 8)
    drawn = model.training_draws(2, latents.device, torch.Generator().manual_seed(0))
    timesteps, noise = drawn.corruption
    assert timesteps.min() >= 0 and timesteps.max() < 1000 and 0.7 * 16 <= drawn.masked <= 16
    draws = TrainingDraws(drawn.order, drawn.masked, drawn.dropped, (torch.full_like(timesteps, 300), noise))
    model.image_decoder.head.weight.data.zero_()
    model.image_decoder.head.bias.data.zero_()  # so that it predicts 0
    clean = model.to_tokens(latents).gather(1, draws.places()[1][..., None].expand(-1, -1, 8))
    want = noise - clean if process == "flow" else noise
    torch.testing.assert_close(model.losses(latents, PROMPTS[:2], draws=draws).total, want.square().mean())
    assert model.tables[300, 1].item() == pytest.approx(0.3 if process == "flow" else VPCosine().nodes([300]).sigmas[0])


def test_a_token_is_masked_at_least() -> None:
    model, generator = tiny_nova(mask_ratio_mean=0.01, mask_ratio_min=0.001), torch.Generator().manual_seed(0)
    masked = [model.training_draws(1, torch.device("cpu"), generator).masked for _ in range(50)]
    assert min(masked) == 1 and max(masked) > 4


def test_what_it_cannot_be_made_of_is_refused() -> None:
    for options, message in (
        ({"latent_size": 6}, "not divisible by 4"), ({"process": "sde"}, "one of flow, cosine, got 'sde'"),
        ({"text_length": 600}, "at most 512"), ({"text_width": 2}, "text_width must be at least 8"),
        ({"heads": 3}, "not divisible by 3 heads"), ({"width": 18, "heads": 2}, "multiple of 4"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tiny_nova(**options)
    with pytest.raises(TypeError, match="a folder, a hub name or Words"):
        tiny_nova(text_encoder={"words": ["cat"]})


# --- the published folder ---------------------------------------------------------------------------------


def test_a_scheduler_says_process_and_solver() -> None:
    flow, shifted, diffusion = scheduled_by(FLOW), scheduled_by({**FLOW, "shift": 2.0}), scheduled_by(DIFFUSION)
    assert (flow.process, diffusion.process) == ("flow", "cosine")
    assert diffusion.solver == DDPM(Leading(), variance="small")
    process = RectifiedFlow()
    for steps in (1, 2, 25):
        assert flow.solver.table(process, steps).nodes.times == pytest.approx(
            Euler(Uniform(last=0.001)).table(process, steps).nodes.times
        )
    assert shifted.solver.table(process, 6).nodes.times[-1] == pytest.approx(0.0039880359)
    for wrong in ({}, {"_class_name": "PNDMScheduler"}, {**DIFFUSION, "variance_type": "learned_range"}):
        with pytest.raises(ValueError, match="known are FlowMatchEulerDiscreteScheduler, and DDPMScheduler with"):
            scheduled_by(wrong)


@pytest.mark.parametrize(("scheduler", "process"), [(FLOW, "flow"), (DIFFUSION, "cosine")])
def test_a_folder_is_loaded_as_its_scheduler_says(scheduler: dict[str, Any], process: Any, tmp_path: Path) -> None:
    model = tiny_nova(process=process)
    folder = save_folder(model, tmp_path / "nova", scheduler, image_size=[64, 64])
    for path in (folder, folder / "transformer", folder / "transformer/diffusion_pytorch_model.safetensors"):
        found = read_checkpoint(path)
        assert found.options == {"process": process, "image_size": 64} and found.model is None
    loaded = tiny_nova(std=0.1, process=process)
    load_into(loaded, folder)
    assert torch.equal(draw(loaded, PROMPTS[:2]), draw(model, PROMPTS[:2]))
    other = "cosine" if process == "flow" else "flow"
    with pytest.raises(ValueError, match=f"process {process}, not {other}: give --model.process {process}"):
        load_into(tiny_nova(process=other), folder)
    described = {"class_path": "disa_framework.models.NOVA", "init_args": {**TINY_NOVA, "process": process}}
    convert(folder, tmp_path / "nova.safetensors", described)
    again = load_model(tmp_path / "nova.safetensors", text_encoder=model.text_source)
    assert torch.equal(draw(again, PROMPTS[:2]), draw(model, PROMPTS[:2]))
    with pytest.raises(ValueError, match=f"give --model.process {process}"):
        convert(folder, tmp_path / "other.safetensors", {**described, "init_args": {**TINY_NOVA, "process": other}})
    with pytest.raises(ValueError, match=f"give --model.process {process}"):
        load_model(tmp_path / "nova.safetensors", tiny_nova(process=other))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for name, options in (("oblong", {"image_size": [64, 32]}), ("video", {"rotary_pos_embed": True})):
        with pytest.raises(ValueError, match="draws squares alone"):
            read_checkpoint(save_folder(tiny_nova(), tmp_path / name, FLOW, **options))
    folder = save_folder(tiny_nova(), tmp_path / "broken", FLOW)
    (folder / "scheduler/scheduler_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is no JSON of a network or a scheduler"):
        read_checkpoint(folder)


@pytest.mark.parametrize(("scheduler", "process"), [(FLOW, "flow"), (DIFFUSION, "cosine")])
def test_it_is_drawn_as_published(scheduler: dict[str, Any], process: Any) -> None:
    sampling = SamplingConfig(
        Constant(5), scheduled_by(scheduler).solver, num_stages=8,
        guidance=Guidance(4.0, "linear", (0.4, 1.0), start=1.5),
    )  # fmt: skip
    latents = generate(tiny_nova(process=process), PROMPTS, sampling)
    assert latents.shape == (4, 2, 8, 8) and latents.isfinite().all()


def test_guidance_grows_from_its_start() -> None:
    model, scales = tiny_nova(), []
    denoiser = model.image_decoder.denoiser
    model.image_decoder.denoiser = lambda z, scale, *rest: scales.append(scale) or denoiser(z, scale, *rest)  # type: ignore
    draw(model, PROMPTS[:2], guidance=Guidance(4.0, "linear", start=2.0), num_stages=4)
    assert scales == [2.5, 3.0, 3.5, 4.0]
