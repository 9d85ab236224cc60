"""CausalAR: what a token sees, its cache, what it costs, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disa_framework import Guidance, PhiloxNoise, generate
from disa_framework.models import CausalAR, Proposal
from disa_framework.models.causal import CausalState
from disa_framework.models.layers import patchify
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DDIM, DDPM, Spaced

LABELS = torch.tensor([0, 2])


def tiny(std: float | None = 0.2, **options: Any) -> CausalAR:
    """Nine tokens, in eval mode, with normal weights of this deviation; `None` leaves them as initialized."""
    sizes = {"latent_size": 6, "latent_channels": 1, "patch_size": 2, "num_classes": 3, "width": 16, "depth": 2,
             "heads": 2, "head_depth": 1, "head_width": 16, "dropout": 0.0}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CausalAR(**{**sizes, **options})
        if std is not None:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@contextmanager
def calls(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of every call of the module."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    yield seen
    handle.remove()


def draw(model: CausalAR, labels: Tensor | None = LABELS, **options: Any) -> Tensor:
    settings: dict[str, Any] = {"schedule": Constant(3), "solver": DDPM(), "batch_size": 2}
    return generate(model, labels, **{**settings, **options})


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
        latents = draw(model, guidance=guidance)
    cached = torch.cat(seen, dim=1)  # of all stages, [G B, N, w]
    tokens, kept = patchify(latents, 2), torch.zeros(2, dtype=torch.bool)
    whole = [model.condition_all(tokens, LABELS, kept)]
    if guidance.active:
        whole.append(model.condition_all(tokens, LABELS, ~kept))
    torch.testing.assert_close(cached, torch.cat(whole), rtol=0, atol=1e-5)


def test_tokens_are_drawn_in_raster_order() -> None:
    model = tiny()
    state: CausalState = model.begin(None, 9, Guidance(), PhiloxNoise(0, torch.arange(2)), 2)
    with torch.inference_mode():
        for stage in range(9):
            state = model.accept(state, model.propose(state, stage), torch.full((2, 1, 4), float(stage)))
    assert model.finish(state)[0, 0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


# --- the cache --------------------------------------------------------------------------------------------


def first_output(model: CausalAR, proposal: Proposal, x: Tensor) -> Tensor:
    """Of the head at timestep 500."""
    return proposal.denoise(model.process.nodes([500]))(x, 0)


@torch.inference_mode()
def test_a_stage_can_be_proposed_again_and_gone_back_to() -> None:
    model, x = tiny(), torch.randn(2, 1, 4)
    start: CausalState = model.begin(LABELS, 9, Guidance(2.0), PhiloxNoise(0, torch.arange(2)), 2)
    second = model.accept(start, model.propose(start, 0), x)

    def third(tokens: Tensor) -> Tensor:
        state = model.accept(second, model.propose(second, 1), tokens)
        return first_output(model, model.propose(state, 2), x)

    first, other = third(x + 1), third(x - 1)
    model.propose(second, 1)
    assert torch.equal(third(x + 1), first)
    assert not torch.allclose(first, other)


def test_a_cache_is_allocated_once_a_run_for_each_layer_and_branch() -> None:
    model, noise = tiny(), PhiloxNoise(0, torch.arange(2))
    for guidance, rows in ((Guidance(), 2), (Guidance(2.0), 4)):
        caches = model.begin(LABELS, 9, guidance, noise, 2).caches
        assert [cache.keys.shape for cache in caches] == [(rows, 2, 9, 8)] * 2


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)], ids=["plain", "guided"])
def test_a_stage_computes_one_token_and_what_it_does_not_change_once(guidance: Guidance) -> None:
    model = tiny()
    net, branches = model.diffloss.net, 2 if guidance.active else 1
    with calls(net.cond_embed) as z, calls(net.time_embed) as times, calls(model.norm) as backbone:
        draw(model, schedule=Constant(6), guidance=guidance)
    assert [x.shape for x in backbone] == [(2 * branches, 1, 16)] * 9
    assert len(z) == len(times) == 9


def test_the_head_is_called_as_often_as_the_schedule_says() -> None:
    model, schedule = tiny(), Linear(9, 2)
    with calls(model.diffloss.net) as head:
        draw(model, schedule=schedule, solver=DDIM())
    assert len(head) == sum(DDIM().evaluations(model.process, steps) for steps in schedule.budget(9))


# --- guidance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "share"), [((0.0, 1.0), 1.0), ((0.9, 0.95), 0.25), ((0.0, 0.5), 0.5)])
def test_guidance_evaluates_the_second_branch_within_its_interval_alone(
    interval: tuple[float, float], share: float
) -> None:
    model = tiny(latent_size=2)
    with calls(model.diffloss.net) as head:
        draw(model, schedule=Constant(4), solver=DDPM(Spaced(clip=950)), guidance=Guidance(2.0, interval=interval))
    # Times 950, 666, 333 and 0.
    assert {len(x) for x in head} <= {2, 4}
    assert sum(len(x) == 4 for x in head) == 4 * share


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@torch.inference_mode()
def test_guidance_extrapolates_noise_by_the_scale_of_its_stage_and_leaves_the_variance(schedule: Any) -> None:
    model, x = tiny(), torch.randn(2, 1, 4)

    def output(labels: Tensor | None, guidance: Guidance, stage: int) -> Tensor:
        state = model.begin(labels, 9, guidance, PhiloxNoise(0, torch.arange(2)), 2)
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
    model = tiny(std=None).train()
    latents = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).sign()
    labels, optimizer = torch.tensor([0, 1, 2, 0]), torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(seed: int) -> Tensor:
        return model.loss(latents, labels, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def held_out() -> float:
        return sum(loss(1000 + seed).item() for seed in range(20)) / 20

    before = held_out()
    for seed in range(60):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    assert held_out() < 0.7 * before


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
