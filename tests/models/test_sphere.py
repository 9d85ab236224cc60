"""SphereAR: what a token sees, the sphere, first tokens of both branches, the cache, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Observer, PhiloxNoise, SamplingConfig, StageRecord, generate
from disa_framework.models import SphereAR
from disa_framework.models.sphere import on_sphere
from disa_framework.nn.tokens import patchify
from disa_framework.schedules import Constant
from disa_framework.solvers import EulerMaruyama
from tests.models.tiny import begin, calls, draw, share_left
from tests.models.tiny_flow import SPHEREAR, tiny_sphere

LABELS = torch.tensor([0, 2])
KEPT = torch.zeros(2, dtype=torch.bool)


class Drawn(Observer):
    """Keeps the tokens of every stage."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.tokens.append(tokens)


# --- what a token sees ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_token_is_conditioned_on_the_class_and_the_tokens_before_it_alone() -> None:
    model, tokens = tiny_sphere(), torch.randn(2, 9, 4)
    z = model.condition_all(tokens, LABELS, KEPT)
    for changed in range(9):
        other = tokens.clone()
        other[:, changed] += 1.0
        same = torch.isclose(model.condition_all(other, LABELS, KEPT), z, atol=1e-6).all(dim=2)
        assert same[:, : changed + 1].all() and not same[:, changed + 1 :].any()
    assert not torch.isclose(model.condition_all(tokens, torch.ones_like(LABELS), KEPT), z).all(dim=2).any()


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(3.0, "constant")], ids=["plain", "guided"])
def test_drawing_with_a_cache_is_conditioned_as_training_is(guidance: Guidance) -> None:
    model = tiny_sphere()
    with calls(model.head.net.cond_embed) as seen:
        latents = draw(model, LABELS, guidance=guidance)
    tokens, whole = patchify(latents, 1), []
    for dropped in (KEPT, ~KEPT)[: guidance.branches]:
        whole.append(model.condition_all(tokens, LABELS, dropped))
    torch.testing.assert_close(torch.cat(seen, dim=1), torch.cat(whole), rtol=0, atol=1e-5)


def test_where_a_token_stands_is_told_by_its_row_and_column_alone() -> None:
    model, x = tiny_sphere(), torch.randn(1, 1, 16).expand(1, 12, 16)
    turned = model.turns(slice(2, 11)).unflatten(0, (3, 3))
    assert torch.equal(model.turns(slice(0, 2)), torch.ones(2, 4, dtype=torch.complex64))
    assert torch.equal(turned[:, :, :2], turned[:1, :, :2].expand(3, -1, -1))  # columns turn the first half
    assert torch.equal(turned[:, :, 2:], turned[:, :1, 2:].expand(-1, 3, -1))
    assert model.backbone(x[:, :10]).shape == (1, 9, 16)


def test_a_model_of_half_precision_turns_by_precise_angles() -> None:
    model = tiny_sphere()
    turns = model.turns(slice(0, 11))
    assert torch.equal(model.bfloat16().turns(slice(0, 11)), turns)


# --- the sphere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(4.0), Guidance(4.0, "constant")])
def test_latents_have_one_norm_everywhere(guidance: Guidance) -> None:
    latents = draw(tiny_sphere(), LABELS, guidance=guidance)
    torch.testing.assert_close(latents.norm(dim=1), torch.full((2, 3, 3), 2.0))


def test_a_point_goes_to_the_nearest_of_the_sphere() -> None:
    x = torch.randn(5, 16)
    torch.testing.assert_close(on_sphere(x), x / x.norm(dim=1, keepdim=True) * 4)
    torch.testing.assert_close(on_sphere(3 * on_sphere(x)), on_sphere(x))
    assert on_sphere(torch.zeros(1, 4)).eq(0).all()
    assert on_sphere(x.bfloat16()).dtype == torch.bfloat16


# --- guidance ---------------------------------------------------------------------------------------------


def test_guidance_grows_from_nothing_at_the_first_token() -> None:
    model, scales = tiny_sphere(), []
    denoiser = model.head.denoiser
    model.head.denoiser = lambda z, scale, guidance: scales.append(scale) or denoiser(z, scale, guidance)  # type: ignore
    draw(model, LABELS, guidance=Guidance(5.5))
    assert scales == [1 + 0.5 * k for k in range(9)]


def test_where_guidance_grows_each_branch_begins_with_a_token_of_its_own() -> None:
    model, plain, guided = tiny_sphere(), Drawn(), Drawn()
    draw(model, LABELS, observers=[plain])
    with calls(model.proj_in) as seen:
        draw(model, LABELS, guidance=Guidance(3.0), observers=[guided])
    assert [tokens.shape[1] for tokens in guided.tokens] == [2] + [1] * 8
    torch.testing.assert_close(guided.tokens[0][:, :1], plain.tokens[0])  # unguided, and of the same noise
    torch.testing.assert_close(seen[0][:, 0], on_sphere(torch.cat(guided.tokens[0].unbind(1))))
    assert all(torch.equal(*x.chunk(2)) for x in seen[1:])


@pytest.mark.parametrize(
    "guidance", [Guidance(3.0, "constant"), Guidance(3.0, stages=(0.5, 1.0)), Guidance(3.0, stages=(0.0, 0.12))]
)
def test_elsewhere_the_branches_share_all_tokens(guidance: Guidance) -> None:
    seen = Drawn()
    draw(tiny_sphere(), LABELS, guidance=guidance, observers=[seen])
    assert {tokens.shape[1] for tokens in seen.tokens} == {1}


# --- the cache --------------------------------------------------------------------------------------------


def test_a_cache_holds_class_and_all_tokens_but_the_last() -> None:
    for guidance, rows in ((Guidance(), 2), (Guidance(2.0), 4)):
        caches = begin(tiny_sphere(), LABELS, guidance=guidance).caches
        assert [cache.keys.shape for cache in caches] == [(rows, 2, 10, 8)] * 2


def test_a_stage_computes_one_token_and_modulations_once_for_blocks_that_share_them() -> None:
    model = tiny_sphere()
    net = model.head.net
    with calls(model.emb_norm) as backbone, calls(net.ada_ln_blocks[0]) as shared, calls(net.res_blocks[1]) as block:
        draw(model, LABELS)  # three steps a stage
    assert [x.shape for x in backbone] == [(2, 2, 16), *[(2, 1, 16)] * 8]
    assert len(shared) == len(block) == 27


# --- training ---------------------------------------------------------------------------------------------


def test_a_dropped_label_has_no_effect_and_is_dropped_in_training_alone() -> None:
    model, latents = tiny_sphere(label_dropout=1.0).train(), on_sphere(torch.randn(2, 4, 3, 3))

    def loss(labels: Tensor | None) -> Tensor:
        return model.loss(latents, labels, torch.Generator().manual_seed(0))

    assert torch.equal(loss(LABELS), loss(None))
    model.eval()
    assert not torch.equal(loss(LABELS), loss(None))


def test_it_learns_a_batch_by_heart() -> None:
    latents = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)).sign()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SphereAR(**SPHEREAR)
    assert share_left(model, latents, torch.tensor([0, 1, 2, 0])) < 0.7


def test_it_is_drawn_as_published() -> None:
    sampling = SamplingConfig(Constant(11), EulerMaruyama(final_step="flow"), guidance=Guidance(4.5))
    latents = generate(tiny_sphere(), LABELS, sampling, noise=PhiloxNoise(0, torch.arange(2)))
    assert latents.shape == (2, 4, 3, 3) and latents.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulations": 3}, "4 blocks of the head do not divide into 3"),
        ({"heads": 3}, "width 16 is not divisible by 3 heads"),
        ({"width": 12, "heads": 2}, "heads of a width divisible by 4, got 6"),
    ],
)
def test_arguments_that_make_no_model_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_sphere(**options)
