"""FlowAR's own claims: its cache, and its grid of scales."""

from __future__ import annotations

import pytest
import torch

from disa_framework import Guidance
from disa_framework.testing.models import StageLog
from tests.models.tiny import begin, calls, draw
from tests.models.tiny_flow import tiny_flowar

LABELS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize("cross", [False, True], ids=["self-attention", "cross-attention"])
def test_stages_over_a_cache_equal_one_pass_over_all_scales(cross: bool) -> None:
    model = tiny_flowar(cross_attention=cross)
    seen = StageLog()
    draw(model, LABELS, observers=[seen])
    z = [proposal.z for proposal in seen.proposals if proposal.z is not None]
    with torch.inference_mode():
        at_once = model.condition_all(seen.tokens, LABELS, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(torch.cat(z, dim=1), at_once, rtol=0, atol=1e-5)


def test_the_unconditional_branch_is_kept_for_the_scales_that_are_guided() -> None:
    model = tiny_flowar()
    with calls(model.decoder_norm) as backbone, calls(model.flownet.input_proj) as head:
        draw(model, LABELS, guidance=Guidance(3.0, "constant", stages=(0.5, 0.9)))  # the second scale of three
    assert [len(z) for z in backbone] == [6, 6, 3]
    assert [len(x) for x in head] == [3] * 3 + [6] * 3 + [3] * 3


def test_the_next_scale_sees_the_whole_image() -> None:
    model = tiny_flowar()
    constant = torch.full((1, 4, 2), 3.0)
    torch.testing.assert_close(model.next_input(constant, 1), torch.full((1, 16, 2), 3.0))


@pytest.mark.parametrize("scales", [(1, 2), (2, 1, 4), (1, 2, 2, 4), (0, 4)])
def test_scales_that_do_not_lead_to_the_latents_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales must grow from at least 1 to latent_size 4"):
        tiny_flowar(scales=scales)


def test_tables_are_made_once_for_a_device() -> None:
    model = tiny_flowar()
    with torch.inference_mode():
        first, again = begin(model).tables, begin(model).tables
    outside = begin(model).tables
    assert first is again and first[0].encoder.is_inference() and not outside[0].encoder.is_inference()
