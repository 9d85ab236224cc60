"""eMIGM beside MAR: one vector for a masked token and no class, and random stage sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.hub import load_model
from disa_framework.hub.checkpoint import write_checkpoint
from disa_framework.models import EMIGM
from disa_framework.models.emigm import masked_share
from disa_framework.sampling.stage_sizes import BinomialSizes, ExponentialSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import LogSNR, SinglestepDPMSolverPP
from tests.models.tiny import TINY, draw, tiny_emigm

LABELS = torch.tensor([0, 1])


def test_the_mask_is_no_class_in_whatever_file(tmp_path: Path) -> None:
    model = tiny_emigm()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.mask_token is model.fake_latent and torch.equal(state["mask_token"], state["fake_latent"])
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in state.values()) - 16
    state["mask_token"] += 1.0  # which the published loader copies last
    write_checkpoint(
        tmp_path / "m.safetensors", state, {"class_path": "disa_framework.models.EMIGM", "init_args": TINY}
    )
    loaded = load_model(tmp_path / "m.safetensors")
    assert isinstance(loaded, EMIGM) and loaded.mask_token is loaded.fake_latent
    assert torch.equal(loaded.fake_latent, state["mask_token"])


def test_it_is_drawn_as_published() -> None:
    sampling = SamplingConfig(
        Constant(8), SinglestepDPMSolverPP(3, LogSNR(0.995, 0.0, to_clean=False), 1000 / 996),
        guidance=Guidance(4.0, "constant", stages=(0.5, 0.8)), stage_sizes=BinomialSizes(), num_stages=4,
    )  # fmt: skip
    latents = generate(tiny_emigm(), LABELS, sampling)
    assert latents.shape == (2, 1, 4, 4) and latents.isfinite().all()


def test_guidance_grows_to_its_scale_at_the_last_stage() -> None:
    model, scales = tiny_emigm(), []
    denoiser = model.diffloss.denoiser
    model.diffloss.denoiser = lambda z, scale, guidance: scales.append(scale) or denoiser(z, scale, guidance)  # type: ignore
    draw(model, LABELS, guidance=Guidance(3.0, "linear"), num_stages=4)
    assert scales == [1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("stages", [1, 8, 64])
def test_sizes_are_random_and_exponential_in_the_mean(stages: int) -> None:
    drawn = torch.tensor([BinomialSizes(seed=seed).sizes(64, stages) for seed in range(300)]).double()
    assert (drawn.sum(1) == 64).all() and (drawn >= 1).all()
    assert BinomialSizes(seed=3).sizes(64, stages) == BinomialSizes(seed=3).sizes(64, stages)
    if stages == 8:
        # Where the least of one token hardly matters.
        mean = torch.tensor([ExponentialSizes().left(k, 8) for k in range(9)]).double().diff().neg() * 64
        assert (drawn.mean(0) - mean)[4:].abs().max() < 0.8 and drawn.std(0)[5] > 1


def test_training_masks_as_many_as_the_mask_time_says() -> None:
    model, generator = EMIGM(**{**TINY, "latent_size": 16}), torch.Generator().manual_seed(0)
    counts = torch.tensor([model.count_masked(64, generator) for _ in range(400)]).double() / 64
    times = torch.linspace(0, 1, 2001).clamp(min=0.2)
    expected = sum(masked_share(0.999 * float(t) + 0.001) for t in times) / len(times)
    assert abs(counts.mean().item() - expected) < 0.03 and counts.min() < 0.65 and counts.max() > 0.98


def test_what_it_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(ValueError, match="widths must be equal"):
        EMIGM(**{**TINY, "decoder_width": 24})
    with pytest.raises(ValueError, match="mask_time_min"):
        EMIGM(**TINY, mask_time_min=1.5)
