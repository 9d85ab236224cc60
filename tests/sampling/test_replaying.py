"""Batches of one kind are drawn by one graph, and what is drawn is the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Lazy, SamplingConfig, generate
from disa_framework.measure import measure_cost
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.order import CheckerboardOrder, RasterOrder
from disa_framework.sampling.replaying import Replaying
from disa_framework.schedules import Linear
from tests.models.tiny import tiny_mar
from tests.test_no_waiting import MODELS

SAMPLING = SamplingConfig(Linear(4, 2), num_stages=3, guidance=Guidance(2.0))
MODEL = tiny_mar()


class Recorded:
    """What a graph does, on any device: it reads inputs where they were when it was made."""

    def __init__(self, function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        self.function, self.inputs, self.replays = function, inputs, 0
        made.append(self)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.replays += 1
        return self.function()


made: list[Recorded] = []


def draw_both(replaying: Replaying, start: int, count: int, seed: int = 0, labels: Tensor | None = None) -> None:
    indices = torch.arange(start, start + count)
    condition = indices % MODEL.num_classes if labels is None else labels
    drawn = replaying.generate(MODEL, condition, SAMPLING, seed, indices)
    assert torch.equal(drawn, generate(MODEL, condition, SAMPLING, seed=seed, indices=indices))


def test_a_kind_is_recorded_when_it_comes_again_and_then_replayed() -> None:
    made.clear()
    replaying = Replaying(Recorded)
    for batch in range(5):
        draw_both(replaying, 3 * batch, 3)
    draw_both(replaying, 15, 2)  # the last batch of a run, which is smaller
    draw_both(replaying, 0, 3, seed=2**63)
    assert [graph.replays for graph in made] == [5]


def test_labels_that_the_caller_keeps_stay_as_they_are() -> None:
    replaying, labels = Replaying(Recorded), torch.tensor([2, 0])
    for _ in range(2):
        draw_both(replaying, 0, 2, labels=labels)
    draw_both(replaying, 0, 2, labels=torch.tensor([1, 1]))
    assert labels.tolist() == [2, 0]


def test_weights_that_moved_are_recorded_anew() -> None:
    made.clear()
    replaying, model = Replaying(Recorded), tiny_mar()
    labels, indices = torch.tensor([0, 1]), torch.arange(2)
    for scale in (1.0, 2.0):
        model.mask_token = torch.nn.Parameter(torch.full_like(model.mask_token, scale))
        for _ in range(3):
            drawn = replaying.generate(model, labels, SAMPLING, 0, indices)
            assert torch.equal(drawn, generate(model, labels, SAMPLING))
    assert len(made) == 2


def test_what_cannot_be_recorded_is_drawn_with_a_warning_once() -> None:
    def refuse(function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Recorded:
        raise RuntimeError("no graph")

    replaying = Replaying(refuse)
    draw_both(replaying, 0, 2)
    with pytest.warns(UserWarning, match="no graph"):
        draw_both(replaying, 2, 2)
    draw_both(replaying, 4, 2)


def test_a_request_that_does_not_fit_is_refused_also_after_recording() -> None:
    replaying = Replaying(Recorded)
    for _ in range(3):
        draw_both(replaying, 0, 2)
    with pytest.raises(ValueError, match="labels"):
        replaying.generate(MODEL, torch.tensor([0, 99]), SAMPLING, 0, torch.arange(2))


CASES = {
    **{name: (name, SamplingConfig(Linear(4, 2), guidance=Guidance(2.0))) for name in MODELS},
    "raster order": ("mar", replace(SAMPLING, order=RasterOrder())),
    "checkerboard order": ("mar", replace(SAMPLING, order=CheckerboardOrder())),
    "cached": ("mar", replace(SAMPLING, cache=Lazy(refresh=2, share=0.2, start=1))),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", [name for name in CASES if "harmon" not in name and "mixture" not in name])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_draw_what_is_drawn_without_them(name: str, dtype: torch.dtype) -> None:
    made_by, sampling = CASES[name]
    module = ARDiffusionModule(MODELS[made_by]().to("cuda", dtype).eval(), sampling).eval()
    plain = ARDiffusionModule(module.model, sampling, graphs=False)
    for start in (0, 3, 6, 9):
        indices = torch.arange(start, start + 3)
        torch.testing.assert_close(*(one.draw(indices % 3, indices) for one in (module, plain)), rtol=0, atol=0)
    assert module.replaying and module.replaying.graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graphs_are_timed_stage_by_stage() -> None:
    module = ARDiffusionModule(tiny_mar().cuda().eval(), replace(SAMPLING, schedule=Linear(50, 5)))
    plain = ARDiffusionModule(module.model, module.sampling, graphs=False)
    cost, slow = (measure_cost(one, torch.tensor([0, 1]), 2, repeats=3) for one in (module, plain))
    assert 0 < sum(cost.head) < sum(slow.head) and len(cost.head) == 3
