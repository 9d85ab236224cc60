"""Drawing on a simulated CUDA device: the same images as on the host, whatever order its streams get on in, and nobody
waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from disa_framework import generate
from disa_framework.models import ARDiffusionModel
from disa_framework.models.graphs import use_graphs
from tests.cuda.launches import launches
from tests.cuda.simulation import simulated_cuda
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar
from tests.test_no_waiting import GUIDANCE, LINEAR, MODELS, asked, solver_of, stages_of

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of the largest latent


def drawn(model: ARDiffusionModel, seed: int) -> Tensor:
    """Latents of four samples."""
    return generate(
        model, asked(model, seed), schedule=LINEAR, solver=solver_of(model), num_stages=stages_of(model),
        guidance=GUIDANCE, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "graphs"), [(torch.float32, True), (torch.bfloat16, False)], ids=["graphs", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_device_draws_what_the_host_draws_and_is_not_waited_for(name: str, dtype: torch.dtype, graphs: bool) -> None:
    model = MODELS[name]().to(dtype)
    expected = [drawn(model, seed) for seed in range(3)]
    with simulated_cuda() as device:
        use_graphs(model.to("cuda:0"), graphs)
        found = [drawn(model, 0).cpu()]
        device.waits.clear()
        later = [drawn(model, seed) for seed in (1, 2)]
        assert not device.waits
        found += [latents.cpu() for latents in later]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


@pytest.mark.parametrize("make", [tiny_mar, tiny_flowar])
def test_a_row_is_three_launches_with_graphs(make: Callable[[], ARDiffusionModel]) -> None:
    """One copies what it is given, one replays it, one copies the result."""
    model = make().requires_grad_(False)
    _, eager = launches(model, solver_of(model), graphs=False)
    assert launches(model, solver_of(model), graphs=True)[1] == 3 < eager / 6
