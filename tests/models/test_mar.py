"""MAR: its order, its mathematics, what it costs, and that it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import Tensor

from disa_framework import Guidance
from disa_framework.models import MAR
from disa_framework.models.mar import MARState, truncated_normal
from disa_framework.nn.tokens import patchify, unpatchify
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule
from disa_framework.solvers import DDIM, DDPM, DPMSolverPP, Solver, Spaced
from tests.models.tiny import begin, calls, draw, share_left, tiny_mar

# --- tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_make_latents_again(patch: int) -> None:
    latents = torch.randn(2, 3, 8, 4)
    tokens = patchify(latents, patch)
    assert tokens.shape == (2, 32 // patch**2, 3 * patch**2)
    assert torch.equal(unpatchify(tokens, patch, 8, 4), latents)


def test_tokens_are_in_raster_order_and_channel_major() -> None:
    latents = torch.arange(2 * 2 * 4).reshape(1, 2, 2, 4)
    assert patchify(latents, 2).tolist() == [[[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]]


# --- sampling ---------------------------------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "one buffer slot": {"buffer_size": 1},
    "patch 1": {"patch_size": 1},
    "patch 4": {"patch_size": 4},
    "3x3 grid": {"latent_size": 6},
    "3 channels": {"latent_channels": 3},
    "1 class": {"num_classes": 1},
    "7 classes": {"num_classes": 7},
    "unlike halves": {"decoder_width": 24, "decoder_depth": 2, "decoder_heads": 3, "head_width": 8},
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_draws_and_trains_in_any_shape(name: str) -> None:
    model = tiny_mar(**SHAPES[name])
    labels = torch.tensor([0, model.num_classes - 1])
    latents = draw(model, labels)
    assert latents.shape == (2, *model.latent_shape)
    assert latents.isfinite().all()
    loss = model.train().loss(latents.clone(), labels)
    loss.backward()
    assert loss.isfinite()


def test_every_class_is_drawn_its_own_way() -> None:
    model = tiny_mar(num_classes=7)
    images = draw(model, torch.arange(7), indices=torch.zeros(7, dtype=torch.int64))
    assert len(images.flatten(1).unique(dim=0)) == 7


@pytest.mark.parametrize("schedule", [Constant(7), Linear(9, 2), PerStage((1, 12, 3, 5))], ids=str)
@pytest.mark.parametrize("solver", [DDPM(), DDPM(Spaced()), DDIM(), DPMSolverPP()], ids=str)
def test_the_head_is_called_as_often_as_the_solver_says(schedule: StepSchedule, solver: Solver) -> None:
    model = tiny_mar()
    with calls(model.diffloss.net) as head:
        draw(model, schedule=schedule, solver=solver)
    assert len(head) == sum(solver.evaluations(model.process, steps) for steps in schedule.budget(4))


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0)], ids=["plain", "guided"])
def test_what_a_stage_does_not_change_is_computed_once_a_stage(guidance: Guidance) -> None:
    model = tiny_mar()
    net = model.diffloss.net
    with calls(net.cond_embed) as z, calls(net.time_embed) as times, calls(model.decoder_norm) as backbone:
        draw(model, torch.tensor([0, 1]), guidance=guidance)
    assert len(z) == len(times) == len(backbone) == 4


def test_outside_of_its_stages_guidance_costs_nothing() -> None:
    model = tiny_mar()
    with calls(model.diffloss.net.input_proj) as head, calls(model.decoder_norm) as backbone:
        draw(model, torch.tensor([0, 1]), guidance=Guidance(2.0, stages=(0.5, 0.75)))
    assert [len(x) for x in backbone] == [len(x) for x in head[::3]] == [2, 4, 4, 2]  # three steps a stage


@torch.inference_mode()
def test_the_backbone_reads_visible_tokens_alone_in_whatever_order() -> None:
    model = tiny_mar(latent_size=6)
    tokens, embedding = torch.randn(2, 9, 4), torch.randn(2, 16)
    visible, drawn = torch.tensor([[0, 3, 5, 8]]).expand(2, -1), torch.tensor([[1, 2, 7]]).expand(2, -1)
    z = model.backbone(tokens, embedding, visible, drawn)
    torch.testing.assert_close(model.backbone(tokens, embedding, visible[:, [2, 0, 3, 1]], drawn), z)

    masked, seen = tokens.clone(), tokens.clone()
    masked[:, [1, 2, 4, 6, 7]] = 100.0
    assert torch.equal(model.backbone(masked, embedding, visible, drawn), z)
    seen[:, 5] += 1.0
    assert not torch.allclose(model.backbone(seen, embedding, visible, drawn), z)


@torch.inference_mode()
def test_an_image_is_drawn_in_an_order_of_its_own() -> None:
    model = tiny_mar(latent_size=8)
    state: MARState = begin(model, torch.zeros(5, dtype=torch.int64))
    assert (state.order.sort(dim=1).values == torch.arange(16)).all()
    assert len(state.order.unique(dim=0)) == 5


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std", "low"), [(1.0, 0.25, 0.7), (1.0, 0.5, 0.01), (0.5, 0.2, 0.0)])
def test_mask_ratios_follow_the_truncated_normal(mean: float, std: float, low: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [truncated_normal(mean, std, low, generator) for _ in range(2000)]
    assert all(low <= ratio <= 1.0 for ratio in draws)
    assert kstest(draws, truncnorm((low - mean) / std, (1 - mean) / std, mean, std).cdf).pvalue > 0.01


def dropped(model: MAR) -> float:
    """Share of samples trained without their class."""
    draws = model.training_draws(2000, torch.device("cpu"), torch.Generator().manual_seed(0))
    return draws.dropped.float().mean().item()


def test_labels_are_dropped_in_training_alone() -> None:
    model = tiny_mar(label_dropout=0.3)
    assert dropped(model.train()) == pytest.approx(0.3, abs=0.05)
    assert dropped(model.eval()) == 0.0


def test_a_dropped_label_has_no_effect() -> None:
    model, latents = tiny_mar(label_dropout=1.0).train(), torch.randn(2, 1, 4, 4)

    def loss(labels: Sequence[int]) -> Tensor:
        return model.loss(latents, torch.tensor(labels), torch.Generator().manual_seed(0))

    assert torch.equal(loss([0, 1]), loss([2, 2]))
    model.eval()
    assert not torch.equal(loss([0, 1]), loss([2, 2]))


def test_the_loss_counts_every_masked_token_as_often_as_it_is_repeated() -> None:
    model = tiny_mar(diffusion_batch_mul=3)
    draws = model.training_draws(2, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert [part.shape for part in draws.corruption] == [(3, 2, draws.masked), (3, 2, draws.masked, 4)]
    with calls(model.diffloss.net) as head:
        loss = model.losses(torch.randn(2, 1, 4, 4), torch.tensor([0, 1]), draws=draws).total
    assert loss.ndim == 0
    assert [x.shape for x in head] == [(3, 2, draws.masked, 4)]


def test_it_learns_a_batch_by_heart() -> None:
    latents = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    assert share_left(tiny_mar(std=None), latents, torch.tensor([0, 1, 2, 0])) < 0.7


# --- arguments --------------------------------------------------------------------------------------------

BAD: dict[str, Callable[[], object]] = {
    "latent_size 4 is not divisible by patch_size 3": lambda: tiny_mar(patch_size=3),
    r"mask_ratio_min must lie in \[0, 1\), got 1.0": lambda: tiny_mar(mask_ratio_min=1.0),
    r"mask_ratio_min must be a number from 0 on, got -0.1": lambda: tiny_mar(mask_ratio_min=-0.1),
    "mask_ratio_std must be above 0, got 0.0": lambda: tiny_mar(mask_ratio_std=0.0),
    "buffer_size must be a whole number from 1 to 1,000,000, got 0": lambda: tiny_mar(buffer_size=0),
    "width 16 is not divisible by 3 heads": lambda: tiny_mar(encoder_heads=3),
}


@pytest.mark.parametrize("message", BAD)
def test_arguments_that_make_no_model_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
