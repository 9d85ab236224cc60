"""FlowAR's own claims: its cache, what it leaves out, its grid of scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Observer, generate
from disa_framework.generation import StageRecord
from disa_framework.guidance import combine
from disa_framework.models import FlowAR
from disa_framework.models.base import Proposal
from disa_framework.models.flowar import FlowARState
from disa_framework.models.layers import flow_times, unpatchify
from disa_framework.noise import PhiloxNoise
from disa_framework.schedules import Linear
from disa_framework.solvers import Euler, Halves
from tests.models.tiny_flow import tiny_flowar

LABELS = torch.tensor([2, 0, 1])
SCHEDULE = Linear(6, 3)
VARIANTS = pytest.mark.parametrize("cross", [False, True], ids=["self-attention", "cross-attention"])


class Watcher(Observer):
    """Keeps the tokens of each stage, the conditioning they came from, and the rows the head was given."""

    def __init__(self, model: FlowAR) -> None:
        self.tokens: list[Tensor] = []
        self.z: list[Tensor] = []
        self.rows: list[int] = []
        model.flownet.cond_embed.register_forward_hook(lambda _, args, __: self.z.append(args[0]))
        model.flownet.register_forward_hook(lambda _, args, __: self.rows.append(len(args[0])))

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.tokens.append(tokens)


@VARIANTS
def test_stages_over_a_cache_equal_one_pass_over_all_scales(cross: bool) -> None:
    model = tiny_flowar(cross_attention=cross)
    seen = Watcher(model)
    generate(model, LABELS, schedule=SCHEDULE, solver=Euler(), observers=[seen])
    with torch.inference_mode():
        at_once = model.condition_all(seen.tokens, LABELS, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(torch.cat(seen.z, dim=1), at_once, rtol=0, atol=1e-5)


@VARIANTS
@pytest.mark.parametrize("high", [1.0, 0.7, 0.0])
def test_what_is_left_out_of_guidance_does_not_touch_the_image(cross: bool, high: float) -> None:
    model = tiny_flowar(cross_attention=cross).double()
    guidance = Guidance(3.0, interval=(0.0, high))
    seen = Watcher(model)
    drawn = generate(model, LABELS, schedule=SCHEDULE, solver=Euler(Halves()), guidance=guidance, observers=[seen])
    rows = list(seen.rows)
    expected, guided = doubled_throughout(model, guidance)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
    assert rows == [6 if acts else 3 for acts in guided]


def doubled_throughout(model: FlowAR, guidance: Guidance) -> tuple[Tensor, list[bool]]:
    """Samples with both branches evaluated at every step of every scale, and where guidance counted."""
    guided: list[bool] = []
    noise = PhiloxNoise(0, torch.arange(3))
    budget = SCHEDULE.budget(3)
    with torch.inference_mode():
        state: FlowARState = model.begin(LABELS, 3, guidance, noise, 3)
        for k in range(3):
            place = model.stage_tokens(k)
            x_in = state.class_embedding
            if state.tokens is not None:
                x_in = model.z_proj(model.next_input(state.tokens, k - 1)).repeat(2, 1, 1)
            z = model.backbone(x_in, state.class_embedding, state.tables[k], place, state.caches)
            nodes = Halves().nodes(model.process, budget[k])
            x = noise.normal(k, (model.scales[k] ** 2, 2), 1, torch.float64)[0].repeat(2, 1, 1)
            for a, b in zip(nodes.times, nodes.times[1:], strict=False):
                acts = a <= guidance.interval[1] and k > 0
                if acts:  # both branches look at the conditional one's state
                    x = x[:3].repeat(2, 1, 1)
                times = model.flownet.embed_times(flow_times([a], z.device))
                times = [part[0] for part in times]
                conditioning = model.flownet.condition(z, state.tables[k].head)
                out = model.flownet(x, times, conditioning)
                if acts:
                    out = combine(out[:3], out[3:], 1 + 2 * k / 2).repeat(2, 1, 1)
                guided.append(acts)
                x = x + (b - a) * out
            state = replace(state, tokens=x[:3])
    return unpatchify(x[:3], 1, 4, 4), guided


def test_a_stage_that_is_proposed_twice_changes_nothing() -> None:
    model = tiny_flowar()

    class Again(FlowAR):
        def propose(self, state: FlowARState, stage: int) -> Proposal:
            super().propose(state, stage)
            return super().propose(state, stage)

    once = generate(model, LABELS, schedule=SCHEDULE, solver=Euler())
    model.__class__ = Again
    assert torch.equal(generate(model, LABELS, schedule=SCHEDULE, solver=Euler()), once)


def test_the_next_scale_sees_the_whole_image() -> None:
    model = tiny_flowar()
    constant = torch.full((1, 4, 2), 3.0)
    torch.testing.assert_close(model.next_input(constant, 1), torch.full((1, 16, 2), 3.0))


@pytest.mark.parametrize("scales", [(1, 2), (2, 1, 4), (1, 2, 2, 4), (0, 4)])
def test_scales_that_do_not_lead_to_the_latents_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales must grow from at least 1 to latent_size 4"):
        tiny_flowar(scales=scales)


def test_a_number_of_stages_other_than_its_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="num_stages must be 3 for this model, got 2"):
        generate(tiny_flowar(), LABELS, num_stages=2, schedule=SCHEDULE, solver=Euler())


def test_tables_are_made_once_for_a_device() -> None:
    model = tiny_flowar()
    source = PhiloxNoise(0, torch.arange(2))
    with torch.inference_mode():
        first, again = (model.begin(None, model.max_stages, Guidance(), source, 2).tables for _ in range(2))
    outside = model.begin(None, model.max_stages, Guidance(), source, 2).tables
    assert first is again and first[0].encoder.is_inference() and not outside[0].encoder.is_inference()
