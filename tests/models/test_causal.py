"""CausalAR: what a token sees, its cache, what it costs, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance
from disa_framework.models import CausalAR, Proposal
from disa_framework.models.causal import RasterState
from disa_framework.nn.tokens import patchify
from tests.models.tiny import begin, calls, draw, filled, share_left

LABELS = torch.tensor([0, 2])


def tiny(std: float | None = 0.2, **options: Any) -> CausalAR:
    """Nine tokens, in eval mode, with normal weights of this deviation; `None` leaves them as initialized."""
    sizes = {"latent_size": 6, "latent_channels": 1, "patch_size": 2, "num_classes": 3, "width": 16, "depth": 2,
             "heads": 2, "head_depth": 1, "head_width": 16, "dropout": 0.0}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return filled(CausalAR(**{**sizes, **options}), std)


# --- what a token sees ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_token_is_conditioned_on_the_class_and_the_tokens_before_it_alone() -> None:
    model, tokens, kept = tiny(), torch.randn(2, 9, 4), torch.zeros(2, dtype=torch.bool)
    z = model.condition_all(tokens, LABELS, kept)
    for changed in range(9):
        other = tokens.clone()
        other[:, changed] += 1.0
        same = torch.isclose(model.condition_all(other, LABELS, kept), z, atol=1e-6).all(dim=2)
        assert same[:, : changed + 1].all() and not same[:, changed + 1 :].any()
    assert not torch.isclose(model.condition_all(tokens, torch.ones_like(LABELS), kept), z).all(dim=2).any()


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(3.0)], ids=["plain", "guided"])
def test_drawing_with_a_cache_is_conditioned_as_training_is(guidance: Guidance) -> None:
    model = tiny()
    with calls(model.diffloss.net.cond_embed) as seen:
        latents = draw(model, LABELS, guidance=guidance)
    cached = torch.cat(seen, dim=1)  # of all stages, [G B, N, w]
    tokens, kept = patchify(latents, 2), torch.zeros(2, dtype=torch.bool)
    whole = [model.condition_all(tokens, LABELS, kept)]
    if guidance.active:
        whole.append(model.condition_all(tokens, LABELS, ~kept))
    torch.testing.assert_close(cached, torch.cat(whole), rtol=0, atol=1e-5)


def test_tokens_are_drawn_in_raster_order() -> None:
    model = tiny()
    state: RasterState = begin(model)
    with torch.inference_mode():
        for stage in range(9):
            state = model.accept(state, model.propose(state, stage), torch.full((2, 1, 4), float(stage)))
    assert model.finish(state)[0, 0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


# --- the cache --------------------------------------------------------------------------------------------


def first_output(model: CausalAR, proposal: Proposal, x: Tensor) -> Tensor:
    """Of the head at timestep 500."""
    return proposal.denoise(model.process.nodes([500]))(x, 0)


def test_a_cache_is_allocated_once_a_run_for_each_layer_and_branch() -> None:
    model = tiny()
    for guidance, rows in ((Guidance(), 2), (Guidance(2.0), 4)):
        caches = begin(model, LABELS, guidance=guidance).caches
        assert [cache.keys.shape for cache in caches] == [(rows, 2, 9, 8)] * 2


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)], ids=["plain", "guided"])
def test_a_stage_computes_one_token_and_what_it_does_not_change_once(guidance: Guidance) -> None:
    model = tiny()
    net, branches = model.diffloss.net, 2 if guidance.active else 1
    with calls(net.cond_embed) as z, calls(net.time_embed) as times, calls(model.norm) as backbone:
        draw(model, LABELS, guidance=guidance)
    assert [x.shape for x in backbone] == [(2 * branches, 1, 16)] * 9
    assert len(z) == len(times) == 9


@pytest.mark.parametrize(
    ("stages", "backbone_rows", "head_rows"),
    [
        ((0.0, 0.0), [2] * 9, [2] * 9),
        ((0.4, 0.6), [4] * 5 + [2] * 4, [2] * 3 + [4] * 2 + [2] * 4),
        ((0.8, 1.0), [4] * 9, [2] * 7 + [4] * 2),
        ((0.0, 1.0), [4] * 9, [4] * 9),
    ],
)
def test_the_unconditional_branch_is_computed_as_long_as_its_keys_are_needed_and_its_head_where_it_acts(
    stages: tuple[float, float], backbone_rows: list[int], head_rows: list[int]
) -> None:
    model = tiny()
    with calls(model.norm) as backbone, calls(model.diffloss.net.input_proj) as head:
        draw(model, LABELS, guidance=Guidance(2.0, stages=stages))
    assert [len(x) for x in backbone] == backbone_rows
    assert [len(x) for x in head[::3]] == head_rows  # three steps a stage


# --- guidance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@torch.inference_mode()
def test_guidance_extrapolates_noise_by_the_scale_of_its_stage_and_leaves_the_variance(schedule: Any) -> None:
    model, x = tiny(), torch.randn(2, 1, 4)

    def output(labels: Tensor | None, guidance: Guidance, stage: int) -> Tensor:
        state = begin(model, labels, guidance=guidance)
        for earlier in range(stage):
            state = model.accept(state, model.propose(state, earlier), x)
        return first_output(model, model.propose(state, stage), x)

    for stage in (0, 4, 8):
        cond, null = output(LABELS, Guidance(), stage), output(None, Guidance(), stage)
        guided = output(LABELS, Guidance(3.0, schedule), stage)
        scale = 3.0 if schedule == "constant" else 1 + 2 * (stage + 1) / 9
        torch.testing.assert_close(guided[..., :4], null[..., :4] + scale * (cond - null)[..., :4])
        torch.testing.assert_close(guided[..., 4:], cond[..., 4:])


# --- training ---------------------------------------------------------------------------------------------


def test_the_loss_counts_every_token_as_often_as_it_is_repeated() -> None:
    model = tiny(diffusion_batch_mul=3)
    with calls(model.diffloss.net) as head:
        model.loss(torch.randn(2, 1, 6, 6), LABELS)
    assert [x.shape for x in head] == [(3, 2, 9, 4)]


def test_a_dropped_label_has_no_effect_and_is_dropped_in_training_alone() -> None:
    model, latents = tiny(label_dropout=1.0).train(), torch.randn(2, 1, 6, 6)

    def loss(labels: Tensor | None) -> Tensor:
        return model.loss(latents, labels, torch.Generator().manual_seed(0))

    assert torch.equal(loss(LABELS), loss(None))
    model.eval()
    assert not torch.equal(loss(LABELS), loss(None))


def test_it_learns_a_batch_by_heart() -> None:
    latents = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).sign()
    assert share_left(tiny(std=None), latents, torch.tensor([0, 1, 2, 0])) < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4}, "latent_size 6 is not divisible by patch_size 4"),
        ({"heads": 3}, "width 16 is not divisible by 3 heads"),
    ],
)
def test_arguments_that_make_no_model_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
