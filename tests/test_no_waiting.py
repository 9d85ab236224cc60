"""Between the first stage and the last nothing waits for the device, and nothing is brought to it.

On the meta device, which holds no numbers, the host can neither read a tensor nor mix its own with the device's; on
CUDA, PyTorch itself refuses to wait. What is drawn by then has been drawn once: tables are made in the first run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disa_framework import Guidance, Lazy, PhiloxNoise, SamplingConfig, StageRecord
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.condition import Condition, place
from disa_framework.sampling.generation import advance
from disa_framework.schedules import Adaptive, Constant, Linear, StepSchedule
from disa_framework.solvers import Euler, EulerMaruyama, FlowMap, Process, RectifiedFlow, Solver
from disa_framework.testing.models import SOLVERS
from disa_framework.toy.mixture import MixtureAR
from tests.models.test_causal import tiny as tiny_causal
from tests.models.tiny import tiny_emigm, tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_sphere, tiny_xar
from tests.models.tiny_harmon import PROMPTS, TINY_VOCABULARY, tiny_harmon
from tests.models.tiny_nova import tiny_nova

LAZY = Lazy(refresh=2, share=0.2, start=1)
MODELS: dict[str, Callable[[], ARDiffusionModel]] = {
    "mar": tiny_mar,
    "mar with a mixture head": lambda: tiny_mar(components=3),
    "mar with a flow-map head": lambda: tiny_mar(self_distillation=0.25),
    "emigm": tiny_emigm,
    "lazy mar": lambda: tiny_mar(latent_size=8),
    "flowar": tiny_flowar,
    "flowar with cross-attention": lambda: tiny_flowar(cross_attention=True),
    "xar": tiny_xar,
    "causal": lambda: tiny_causal(latent_size=4),
    "spherear": tiny_sphere,
    "harmon": lambda: tiny_harmon(TINY_VOCABULARY),
    "lazy harmon": lambda: tiny_harmon(TINY_VOCABULARY, depth=2),
    "nova": tiny_nova,
    "mixture": lambda: MixtureAR(num_tokens=6, num_components=4, num_classes=3),
    "mixture of flows": lambda: MixtureAR(num_tokens=6, num_components=4, num_classes=3, process=RectifiedFlow()),
}
DRAWING: dict[type[Process], Solver] = {**SOLVERS, RectifiedFlow: EulerMaruyama(), FlowMap: Euler()}
READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "equal"}
MAKES = {"tensor", "as_tensor", "from_numpy"}  # of numbers that the host has
NEEDS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
LINEAR, CONSTANT = Linear(3, 2), Constant(2)  # whose tables the first one has, too
GUIDANCE = Guidance(2.0, interval=(0.1, 0.9))


class Calls(TorchFunctionMode):
    """Notes where the host reads what a device has, any if none is given, or gives it numbers."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device, self.waits = device, Counter[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        reads = name in READS and self.device in (None, args[0].device.type)
        if reads or (name in MAKES and not isinstance(args[0], Tensor)):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Notes which operations need the host within, and the shapes of all that is computed."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device, self.waits = device, Counter[str]()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        by_mask = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in given[1:])
        there = self.device is None or any(tensor.device.type == self.device for tensor in given)
        if (there and (by_mask or name in NEEDS)) or name == "lift_fresh":
            self.waits[name] += 1
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in (*given, *made)}) > 1:
            self.waits[f"{name} from one device to another"] += 1
        self.shapes += [tuple(tensor.shape) for tensor in made]
        return result


class Watch:
    """Of all that is called and computed within."""

    def __init__(self, device: str | None = None) -> None:
        self.calls, self.operations = Calls(device), Operations(device)

    def __enter__(self) -> Watch:
        self.calls.__enter__()
        self.operations.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.operations.__exit__(*error)
        self.calls.__exit__(*error)


@contextmanager
def cuda_refuses_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sampling_of(name: str, model: ARDiffusionModel, schedule: StepSchedule) -> SamplingConfig:
    return model.settle(
        SamplingConfig(
            schedule,
            DRAWING[type(model.process)],
            max(model.min_stages, min(3, model.max_stages)),
            Guidance(2.0, interval=(0.1, 0.9)),
            LAZY if name.startswith("lazy") else None,
        )
    )


def asked(model: ARDiffusionModel, turn: int = 0) -> Condition:
    if model.num_classes:
        return (torch.arange(4) + turn) % model.num_classes
    return PROMPTS[turn:] + PROMPTS[:turn]


@torch.inference_mode()
def draw(name: str, model: ARDiffusionModel, schedule: StepSchedule, seed: int = 0, watch: Any = None) -> Any:
    """Draws all stages once a run has begun, within `watch`, which is returned."""
    sampling, watch = sampling_of(name, model, schedule), watch or Watch()
    source = PhiloxNoise(seed, torch.arange(4), model.device)

    def steps_of(stage: int, history: Sequence[StageRecord]) -> int:
        return schedule.at(stage, sampling.budget, history)

    state = model.begin(place(asked(model, seed), model.device), sampling, source)
    with watch:
        advance(model, state, range(sampling.stages), steps_of, sampling.solver, source, watched=schedule.adapts)
    return watch


@pytest.mark.parametrize("name", MODELS)
def test_no_stage_waits_for_the_device_or_brings_anything_to_it(name: str) -> None:
    model = MODELS[name]().to("meta")
    draw(name, model, LINEAR)
    for schedule in (LINEAR, CONSTANT):
        watch = draw(name, model, schedule, 1, Watch("meta"))
        assert not watch.calls.waits and not watch.operations.waits
        assert watch.operations.shapes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", MODELS)
def test_cuda_is_never_waited_for(name: str) -> None:
    model = MODELS[name]().to("cuda")
    draw(name, model, LINEAR)
    for schedule in (LINEAR, CONSTANT):
        draw(name, model, schedule, 1, cuda_refuses_to_wait())


@pytest.mark.parametrize("name", MODELS)
def test_an_adaptive_schedule_reads_one_number_of_each_stage_but_the_last_and_is_the_only_one_to_read(
    name: str,
) -> None:
    model, schedule = MODELS[name](), Adaptive(threshold=1.0, low=2, high=4)
    draw(name, model, schedule)
    watch, stages = draw(name, model, schedule), sampling_of(name, model, schedule).stages
    # Whether samples end early is known on the host, where a model does not say otherwise.
    assert watch.calls.waits == {"__float__": stages - 1, "__bool__": stages}
    assert sum(watch.operations.waits.values()) == 2 * stages - 1


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_of_a_stage_are_the_same_whatever_is_drawn(name: str) -> None:
    model = MODELS[name]()
    draw(name, model, LINEAR)
    first, second = (draw(name, model, LINEAR, seed).operations.shapes for seed in (1, 2))
    assert first == second


def test_what_waits_is_seen() -> None:
    x = torch.arange(4.0)
    reads: list[Callable[[], object]] = [
        lambda: x[0].item(), lambda: bool(x[1]), lambda: x.sum().tolist(), lambda: x.nonzero(), lambda: x[x > 1],
        lambda: torch.tensor([1.0]), lambda: torch.as_tensor([1.0]), lambda: torch.equal(x, x),
        lambda: x.masked_select(x > 1), lambda: x.to("meta"), lambda: int(x[1]), lambda: x.cpu(), lambda: x.numpy(),
    ]  # fmt: skip
    for read in reads:
        with Watch() as watch:
            read()
        assert watch.calls.waits or watch.operations.waits
