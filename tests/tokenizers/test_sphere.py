"""Squares of pixels on a sphere, and back."""

from __future__ import annotations

import math

import pytest
import torch

from disa_framework.tokenizers import SphericalPatches


@pytest.mark.parametrize(("patch", "margin", "channels"), [(1, 0, 1), (2, 0, 1), (2, 1, 3), (4, 2, 1)])
def test_images_come_back_and_latents_have_one_norm(patch: int, margin: int, channels: int) -> None:
    tokenizer, images = SphericalPatches(patch, margin), 2 * torch.rand(3, channels, 8, 8) - 1
    latents = tokenizer.encode(images)
    side = (8 + 2 * margin) // patch
    assert latents.shape == (3, channels * patch**2 + 1, side, side)
    torch.testing.assert_close(latents.norm(dim=1), torch.full((3, side, side), math.sqrt(latents.shape[1])))
    torch.testing.assert_close(tokenizer.decode(latents), images)
    tokenizer.check(latents.shape[1:])


def test_pixels_lie_on_one_half_with_the_darkest_and_brightest_on_its_edge() -> None:
    tokenizer, extremes = SphericalPatches(2), torch.tensor([-1.0, 0.0, 1.0])
    last = tokenizer.encode(extremes.view(3, 1, 1, 1).expand(3, 1, 2, 2))[:, -1].flatten()
    torch.testing.assert_close(last, torch.tensor([0.0, -math.sqrt(5), 0.0]))


def test_what_a_model_draws_is_decoded_wherever_it_lies() -> None:
    tokenizer = SphericalPatches(2)
    latents = torch.nn.functional.normalize(torch.randn(100, 5, 2, 2), dim=1) * math.sqrt(5)
    latents[0] = torch.tensor([0, 0, 0, 0, math.sqrt(5)]).view(5, 1, 1)  # which no square is
    images = tokenizer.decode(latents)
    assert images.isfinite().all() and images[1:].abs().max() > 1
    torch.testing.assert_close(tokenizer.encode(images)[1:], latents[1:], rtol=0, atol=1e-3)
    assert tokenizer.decode(torch.zeros(1, 5, 2, 2)).eq(0).all()


def test_latents_that_are_no_squares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"C one above a multiple of 4, .*draws \[4, 2, 2\]"):
        SphericalPatches(2).check((4, 2, 2))
