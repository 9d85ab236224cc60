"""Feature caching: exact where everything is computed, cheap where little is, and never more than an approximation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, PhiloxNoise, generate
from disa_framework.models import MAR
from disa_framework.models.lazy import Lazy
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_xar

LABELS = torch.tensor([2, 0, 1])
GUIDED = Guidance(3.0)


def model() -> MAR:
    return tiny_mar(latent_size=8, patch_size=2, encoder_depth=3, decoder_depth=3)


def draw(mar: MAR, cache: Lazy | None, **options: Any) -> Tensor:
    settings: dict[str, Any] = {"schedule": Constant(3), "solver": DDPM(), "num_stages": 12, "guidance": GUIDED}
    return generate(mar, **{"condition": LABELS, **settings, **options, "cache": cache})


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).square().mean().sqrt() / b.std()).item()


@pytest.mark.parametrize("guidance", [Guidance(), GUIDED], ids=str)
def test_refreshed_at_every_stage_it_changes_nothing(guidance: Guidance) -> None:
    mar = model()
    assert distance(draw(mar, Lazy(refresh=1), guidance=guidance), draw(mar, None, guidance=guidance)) < 1e-5


def test_without_guidance_it_changes_nothing_if_all_tokens_are_computed() -> None:
    mar, plain = model(), Guidance()
    assert distance(draw(mar, Lazy(5, 1.0), guidance=plain), draw(mar, None, guidance=plain)) < 1e-5


def test_it_is_farther_off_the_less_is_computed() -> None:
    mar = model()
    exact = draw(mar, None)
    errors = [distance(draw(mar, Lazy(refresh, 0.1)), exact) for refresh in (2, 4, 12)]
    assert 0 < errors[0] < errors[1] < errors[2] < 1
    assert distance(draw(mar, Lazy(12, 0.8)), exact) < errors[2]


def test_between_refreshes_only_some_tokens_of_the_conditional_branch_are_computed() -> None:
    mar, share, N = model(), 0.25, 16
    shapes: list[tuple[int, int]] = []
    mar.decoder[-1].norm2.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape[:2])))
    draw(mar, Lazy(4, share), num_stages=N)  # one token a stage
    L = mar.buffer_size + N
    between = (3, 2 + math.floor(share * (L - 2)))  # the token to be drawn, the one drawn last, those that moved
    assert shapes == [(6, L) if stage % 4 == 0 else between for stage in range(N)]


def test_a_stage_that_is_proposed_twice_is_the_same_twice() -> None:
    mar = model()
    mar.cache = Lazy(4, 0.2)
    with torch.inference_mode():
        noise = PhiloxNoise(0, torch.arange(3))
        state = mar.begin(LABELS, 12, GUIDED, noise, 3)
        for stage in range(7):
            first, second = mar.propose(state, stage), mar.propose(state, stage)
            assert first.z is not None and second.z is not None and torch.equal(first.z, second.z)
            state = mar.accept(state, second, noise.normal(stage, first.shape, 1)[0])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    mar, cache = model(), Lazy(4, 0.2)
    together = draw(mar, cache)
    alone = draw(mar, cache, condition=LABELS[1:2], indices=torch.tensor([1]))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


def test_it_holds_for_one_run() -> None:
    mar = model()
    draw(mar, Lazy(4))
    assert mar.cache is None


def test_models_without_a_masked_backbone_refuse() -> None:
    with pytest.raises(ValueError, match="masked models such as MAR, XAR is none"):
        generate(tiny_xar(), LABELS, schedule=Constant(2), solver=DDPM(), cache=Lazy())


@pytest.mark.parametrize(("options", "message"), [((0, 0.1), "at least 1 stage, got 0"), ((2, 1.5), "got 1.5")])
def test_bounds_are_checked(options: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lazy(*options)
