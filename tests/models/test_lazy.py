"""Feature caching: exact where everything is computed, cheap where little is, and never more than an approximation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Lazy, PhiloxNoise
from disa_framework.models import MAR, Harmon
from disa_framework.sampling.condition import Condition
from tests.models import tiny
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_xar
from tests.models.tiny_harmon import PROMPTS, TINY_VOCABULARY, tiny_harmon

Masked = MAR | Harmon

LABELS = torch.tensor([2, 0, 1])
GUIDED = Guidance(3.0)


def mar() -> MAR:
    return tiny_mar(latent_size=8, patch_size=2, encoder_depth=3, decoder_depth=3)


def harmon() -> Harmon:
    """Draws 3x5 tokens."""
    return tiny_harmon(TINY_VOCABULARY, depth=3, image_size=(48, 80))


@pytest.fixture(params=[mar, harmon])
def model(request: pytest.FixtureRequest) -> Masked:
    return request.param()


def asked(model: Masked) -> Condition:
    return PROMPTS[:3] if isinstance(model, Harmon) else LABELS


def draw(model: Masked, cache: Lazy | None, **options: Any) -> Tensor:
    settings = {"condition": asked(model), "num_stages": 12, "guidance": GUIDED, **options}
    return tiny.draw(model, **settings, cache=cache)


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).square().mean().sqrt() / b.std()).item()


@torch.inference_mode()
def conditioning(model: Any, cache: Lazy | None, guidance: Guidance = GUIDED) -> list[tuple[Tensor, Tensor]]:
    """What the head is told at each stage, asked twice, if random tokens are drawn."""
    noise, told = PhiloxNoise(0, torch.arange(3)), []
    state = tiny.begin(model, asked(model), num_stages=12, guidance=guidance, cache=cache)
    for stage in range(12):
        first, second = model.propose(state, stage), model.propose(state, stage)
        told.append((first.z, second.z))
        state = model.accept(state, second, noise.normal(stage, first.shape, 1)[0])
    return told


@pytest.mark.parametrize("guidance", [Guidance(), GUIDED], ids=str)
def test_refreshed_at_every_stage_it_changes_nothing(model: Masked, guidance: Guidance) -> None:
    assert distance(draw(model, Lazy(refresh=1), guidance=guidance), draw(model, None, guidance=guidance)) < 1e-5


def test_without_guidance_it_changes_nothing_if_all_tokens_are_computed(model: Masked) -> None:
    plain = Guidance()
    assert distance(draw(model, Lazy(5, 1.0, 1), guidance=plain), draw(model, None, guidance=plain)) < 1e-5


def test_it_is_farther_off_the_less_is_computed(model: Masked) -> None:
    exact = draw(model, None)
    errors = [distance(draw(model, Lazy(refresh, 0.1, 1)), exact) for refresh in (2, 4, 12)]
    assert 0 < errors[0] < errors[1] < errors[2] < 1
    assert distance(draw(model, Lazy(12, 0.8, 1)), exact) < errors[2]


def test_what_begins_later_is_less_far_off_and_changes_nothing_if_it_never_begins(model: Masked) -> None:
    exact = draw(model, None)
    errors = [distance(draw(model, Lazy(12, 0.1, start)), exact) for start in (1, 6, 12)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


def test_between_refreshes_only_some_tokens_of_the_conditional_branch_are_computed(model: Masked) -> None:
    masked, share = model.mar if isinstance(model, Harmon) else model, 0.25
    shapes: list[tuple[int, int]] = []
    masked.decoder[-1].norm2.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape[:2])))
    draw(model, Lazy(4, share, 1), num_stages=model.num_tokens)  # one token a stage
    L = masked.buffer_size + model.num_tokens
    between = (3, 2 + math.floor(share * (L - 2)))  # the token to be drawn, the one drawn last, those that moved
    assert shapes == [(6, L) if stage % 4 == 0 else between for stage in range(model.num_tokens)]


@pytest.mark.parametrize("stages", [(0.0, 0.5), (0.4, 0.8), (0.5, 1.0)])
def test_guidance_of_some_stages_is_as_exact_as_that_of_all(model: Masked, stages: tuple[float, float]) -> None:
    guidance = Guidance(3.0, stages=stages)
    exact, always = conditioning(model, None, guidance), conditioning(model, None)
    assert distance(draw(model, Lazy(1), guidance=guidance), draw(model, None, guidance=guidance)) < 1e-5
    lazy = conditioning(model, Lazy(5, 1.0, 1), guidance)
    for stage, ((cached, _), (told, _)) in enumerate(zip(lazy, exact, strict=True)):
        rows = 6 if guidance.acts_at(stage, 12) else 3
        assert len(told) == len(cached) == rows and distance(told, always[stage][0][:rows]) < 1e-5
        assert distance(cached[:3], told[:3]) < 1e-5


def test_everything_is_computed_where_guidance_begins_anew(model: Masked) -> None:
    masked, rows = model.mar if isinstance(model, Harmon) else model, list[tuple[int, int]]()
    masked.decoder[-1].norm2.register_forward_hook(lambda _, args, __: rows.append(tuple(args[0].shape[:2])))
    K, L = model.num_tokens, masked.buffer_size + model.num_tokens
    draw(model, Lazy(6, 0.2, 1), num_stages=K, guidance=Guidance(3.0, stages=(0.5, 0.9)))
    first = next(k for k in range(K) if (k + 1) / K >= 0.5)
    whole = {k: count for k, (count, length) in enumerate(rows) if length == L}
    assert whole == {0: 3, 6: 3, first: 6, 12: 6}


def test_between_refreshes_the_language_model_reads_all_that_is_visible_for_the_conditional_branch_alone() -> None:
    model = harmon()
    S, read = model.mar.buffer_size, list[tuple[int, int]]()
    model.llm.model.norm.register_forward_hook(lambda _, __, out: read.append(tuple(out.shape[:2])))
    draw(model, Lazy(4, start=1), num_stages=model.num_tokens)
    assert read[1:] == [(3 if stage % 4 else 6, stage + S) for stage in range(model.num_tokens)]  # after the prompts


def test_the_conditional_branch_is_exact_if_all_its_tokens_are_computed(model: Masked) -> None:
    for (cached, _), (exact, _) in zip(conditioning(model, Lazy(5, 1.0, 1)), conditioning(model, None), strict=True):
        assert distance(cached[:3], exact[:3]) < 1e-5


def test_a_stage_that_is_proposed_twice_is_the_same_twice(model: Masked) -> None:
    assert all(torch.equal(first, second) for first, second in conditioning(model, Lazy(4, 0.2, 1)))


def test_a_sample_does_not_depend_on_its_batch(model: Masked) -> None:
    cache = Lazy(4, 0.2, 1)
    together = draw(model, cache)
    alone = draw(model, cache, condition=asked(model)[1:2], indices=torch.tensor([1]))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


def test_models_without_a_masked_backbone_refuse() -> None:
    with pytest.raises(ValueError, match="XAR caches no features, as MAR and Harmon do: leave the cache out"):
        tiny.draw(tiny_xar(), LABELS, cache=Lazy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 0.1), "refresh must be at least 1 stage, got 0"),
        ((2, 1.5), "got 1.5"),
        ((2, 0.1, 0), "start must be at least 1 stage, got 0"),
    ],
)
def test_bounds_are_checked(options: tuple[int, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lazy(*options)
