"""Recorded models draw what others draw, and record as often as shapes differ.

On a CPU a replay is one more evaluation on the copies, so everything but the recording itself is seen there: what is
copied, when, and which evaluations share a graph.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from disa_framework import Guidance, generate
from disa_framework.devices import missing_cuda
from disa_framework.models import ARDiffusionModel
from disa_framework.models.base import Condition
from disa_framework.models.graphs import Evaluator, Graphs, Recorded, use_graphs, without_graphs
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant, Linear, StepSchedule
from disa_framework.solvers import DDPM, DPMSolverPP, Euler, EulerMaruyama, Heun, Solver, Uniform
from tests.models.test_causal import tiny as tiny_causal
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar, tiny_xar
from tests.models.tiny_harmon import PROMPTS, TINY_VOCABULARY, tiny_harmon
from tests.test_no_waiting import draw as watched

CUDA = torch.cuda.is_available()
GUIDED = Guidance(2.0, interval=(0, 0.8))  # steps of both kinds: with an unconditional branch, and without


class Case(NamedTuple):
    """A family, and how many graphs its stages need: rows with and without guidance, and where a solver adds noise,
    the last one, which adds none."""

    make: Callable[[], ARDiffusionModel]
    solver: Solver
    stages: int
    graphs: int


CASES = {
    # Stages of 1, 2 and 3 tokens; the backbone at each stage.
    "MAR": Case(lambda: tiny_mar(latent_size=8), DDPM(), 8, 3 * 3 + 8),
    "CausalAR": Case(tiny_causal, DDPM(), 9, 3),
    # Stages of the same kind; the language model and all around it are not recorded.
    "Harmon": Case(lambda: tiny_harmon(TINY_VOCABULARY), DDPM(), 8, 3 * 3),
    # The first stage is never guided.
    "FlowAR v1": Case(tiny_flowar, Euler(), 3, 1 + 2 * 2),
    "FlowAR v2": Case(lambda: tiny_flowar(cross_attention=True), EulerMaruyama(), 3, 2 + 2 * 3),
    "xAR": Case(tiny_xar, Euler(), 4, 1 + 2 * 3),
}


def draw(case: Case, model: ARDiffusionModel, schedule: StepSchedule, seed: int = 0) -> Tensor:
    asked: Condition = PROMPTS[seed : seed + 2] if model.num_classes == 0 else (torch.arange(2) + seed) % 3
    return generate(
        model, asked, schedule=schedule, solver=case.solver, num_stages=case.stages, guidance=GUIDED, seed=seed
    )


def assert_same(drawn: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """To this share of the largest number: products may be rounded by where in memory their factors lie."""
    torch.testing.assert_close(drawn, expected, rtol=0, atol=share * expected.abs().max().item())


def graphs_of(model: Recorded) -> Graphs:
    assert model.graphs is not None
    return model.graphs


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_model_draws_the_same_and_records_no_more_for_other_steps_seeds_and_conditions(name: str) -> None:
    case = CASES[name]
    model, runs = case.make(), [(Linear(7, 3), 0), (Linear(7, 3), 1), (Constant(8), 2)]
    expected = [draw(case, model, *run) for run in runs]
    keys = list(model.state_dict())
    use_graphs(model)
    for run, latents in zip(runs, expected, strict=True):
        assert_same(draw(case, model, *run), latents)
        assert len(graphs_of(model)) == case.graphs
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("solver", [DPMSolverPP(order=3, grid=Uniform()), Heun(), EulerMaruyama()])
def test_a_solver_with_a_past_draws_the_same_and_needs_a_graph_for_each_kind_of_row(solver: Solver) -> None:
    case = Case(tiny_flowar, solver, 3, 0)
    model = case.make()
    use_graphs(model)
    counts = []
    for steps in (*range(1, 13), 17, 23, 30, 50):
        drawn = draw(case, model, Constant(steps))
        counts.append(len(graphs_of(model)))
        with without_graphs(model):
            assert_same(drawn, draw(case, model, Constant(steps)))
    assert counts[-4:] == counts[-1:] * 4
    # Rows that read none, one or two before them, and the last; guided and not but at the first stage; and tables of
    # few steps, which keep fewer.
    assert counts[-1] <= 3 * (4 + 2 * (2 * 4))


@pytest.mark.parametrize("name", CASES)
def test_graphs_follow_a_model_that_is_moved_and_no_copy_of_it(name: str) -> None:
    case = CASES[name]
    model = case.make()
    use_graphs(model)
    drawn = draw(case, model, Constant(2))
    copied = copy.deepcopy(model)
    assert len(graphs_of(copied)) == 0 < len(graphs_of(model))
    assert len({id(m.graphs) for m in copied.modules() if isinstance(m, Recorded)}) == 1
    assert_same(draw(case, copied, Constant(2)), drawn)
    with without_graphs(copied.double()):
        expected = draw(case, copied, Constant(2))
    assert len(graphs_of(model.double())) == 0
    assert_same(draw(case, model, Constant(2)), expected, 1e-12)


@pytest.mark.parametrize("make", [tiny_mar, tiny_xar])
def test_the_host_reads_nothing_for_it(make: Callable[[], ARDiffusionModel]) -> None:
    model = make().to("meta")
    use_graphs(model)
    watched(model, Constant(1))
    watch = watched(model, Constant(1), seed=1, turn=1)
    assert len(graphs_of(model)) and not watch.calls.waits and not watch.operations.waits


def test_without_cuda_it_draws_anyway_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="without CUDA graphs: there is no CUDA device"):
        module = ARDiffusionModule(tiny_mar(), Constant(2), graphs=True)
    assert module.model.graphs is None
    assert module.draw(None, torch.arange(2)).shape == (2, 1, 4, 4)


# --- of a single function -----------------------------------------------------------------------------------


class Scaled(nn.Module):
    """`weight * (sum of all parts + shift)`, and how often it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.tensor(2.0)), 0

    def forward(self, *parts: Tensor, shift: dict[str, list[Tensor | None]], sign: int = 1) -> Tensor:
        self.calls += 1
        constant = sum(tensor for tensor in shift["of"] if tensor is not None)
        return sign * self.weight * (sum(parts) + constant)


def shift(value: float) -> dict[str, list[Tensor | None]]:
    return {"of": [None, torch.full((3,), value)]}


@torch.inference_mode()
def test_constants_are_copied_once_a_stage_and_inputs_at_every_call() -> None:
    graphs, constants = Graphs(), shift(1.0)
    module, evaluate = Scaled(), Evaluator(graphs, {"shift": constants})
    for function in (module, module.forward):  # which share them
        assert evaluate(function, torch.zeros(3)).tolist() == [2, 2, 2]
    assert constants["of"][1] is not None
    constants["of"][1].fill_(5.0)
    for function in (module, module.forward):
        assert evaluate(function, torch.ones(3)).tolist() == [4, 4, 4]
    assert Evaluator(graphs, {"shift": constants})(module, torch.ones(3)).tolist() == [12, 12, 12]


def test_a_run_leaves_nothing_but_the_graphs_and_these_nothing_but_their_places() -> None:
    """Without a collection of garbage, which would come too late on a device."""
    graphs = Graphs(most=1)
    left: list[weakref.ref[object]] = []
    gc.disable()
    try:
        with torch.inference_mode():
            for size in (1, 2, 3):
                given = {"of": [torch.ones(size)]}
                Evaluator(graphs, {"shift": given})(Scaled(), torch.ones(size))
                left += [weakref.ref(given["of"][0]), weakref.ref(next(iter(graphs._graphs.values())))]
                del given
        assert [ref() is None for ref in left] == [True, True, True, True, True, False]
        graphs.forget()
        assert left[-1]() is None
    finally:
        gc.enable()


@torch.inference_mode()
def test_numbers_that_vary_are_refused_and_named_tuples_are_kept() -> None:
    evaluate = Evaluator(Graphs(), {})
    with pytest.raises(TypeError, match=r"the number 0\.5 would be part of a recording"):
        evaluate(torch.add, torch.ones(2), 0.5)
    assert evaluate(_first, Pair(torch.ones(2), 3)).tolist() == [3, 3]
    assert evaluate(_first, Pair(torch.ones(2), True)).tolist() == [1, 1]


class Pair(NamedTuple):
    tensor: Tensor
    factor: int


def _first(pair: Pair) -> Tensor:
    assert isinstance(pair, Pair)
    return pair.tensor * pair.factor


@torch.inference_mode()
def test_stages_that_take_turns_have_constants_of_their_own() -> None:
    graphs, module = Graphs(), Scaled()
    first, second = (partial(Evaluator(graphs, {"shift": shift(value)}), module) for value in (1.0, 2.0))
    for size in (1, 3, 1, 3):  # sizes share constants, and have graphs of their own
        x = torch.zeros(size)
        kept = first(x)
        assert second(x).tolist() == [4, 4, 4]
        assert first(x).tolist() == kept.tolist() == [2, 2, 2]
    assert len(graphs) == 2


@torch.inference_mode()
def test_what_is_no_tensor_and_how_many_tensors_there_are_make_graphs_of_their_own() -> None:
    graphs, module, x = Graphs(), Scaled(), torch.ones(3)
    plus, minus = (partial(Evaluator(graphs, {"shift": shift(1.0), "sign": sign}), module) for sign in (1, -1))
    assert plus(x).tolist() == [4, 4, 4] and minus(x).tolist() == [-4, -4, -4] and plus(x, x).tolist() == [6, 6, 6]
    assert plus(x.double()).dtype == torch.float64 and plus(x.expand(2, 3)).shape == (2, 3)
    assert len(graphs) == 5


@torch.inference_mode()
def test_the_graph_unused_for_longest_is_given_up_where_there_are_too_many() -> None:
    graphs, module = Graphs(most=2), Scaled()

    def evaluations(size: int) -> int:
        before, x = module.calls, torch.ones(size, 3)
        assert Evaluator(graphs, {"shift": shift(1.0)})(module, x).tolist() == [[4, 4, 4]] * size
        return module.calls - before

    recorded = evaluations(1)
    assert recorded > (replayed := evaluations(1))
    assert [evaluations(size) for size in (2, 1, 3, 1, 2)] == [recorded, replayed, recorded, replayed, recorded]
    assert len(graphs) == 2


def test_with_gradients_or_autocast_the_function_is_called() -> None:
    graphs, module = Graphs(), Scaled()
    evaluate = Evaluator(graphs, {"shift": shift(1.0)})
    evaluate(module, torch.ones(3)).sum().backward()
    assert module.weight.grad == 6
    torch.set_autocast_enabled("cuda", True)
    try:
        with torch.inference_mode(), pytest.warns(UserWarning, match="without CUDA graphs, as under mixed precision"):
            assert evaluate(module, torch.ones(3)).tolist() == [4, 4, 4]
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert len(graphs) == 0


def test_who_watches_gets_the_model_as_it_is_without_graphs() -> None:
    model = tiny_mar()
    use_graphs(model)
    kept = graphs_of(model)
    with without_graphs(model):
        generate(model, batch_size=1, schedule=Constant(1), solver=DDPM())
    assert model.graphs is model.diffloss.graphs is kept and len(kept) == 0


def test_none_to_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 graph, got 0"):
        Graphs(most=0)


def test_graphs_are_not_stored() -> None:
    graphs = Graphs(most=7)
    with torch.inference_mode():
        Evaluator(graphs, {"shift": shift(1.0)})(Scaled(), torch.ones(3))
    stored = pickle.loads(pickle.dumps(graphs))
    assert stored.most == 7 and len(stored) == 0 < len(graphs)


def test_all_cells_of_xar_share_one_copy_of_the_caches() -> None:
    model = tiny_xar()
    use_graphs(model)
    draw(CASES["xAR"], model, Linear(3, 2), 0)
    kept = graphs_of(model)
    assert len({id(graph.constants) for graph in kept._graphs.values()}) == 1 < len(kept)


def test_a_module_without_graphs_makes_a_model_draw_without_them() -> None:
    model = tiny_mar()
    use_graphs(model)
    ARDiffusionModule(model)
    assert model.graphs is None and model.diffloss.graphs is None


# --- on CUDA ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CUDA, reason=str(missing_cuda()))
@pytest.mark.parametrize("name", CASES)
def test_on_cuda_it_draws_the_same_and_waits_for_nothing(name: str) -> None:
    case = CASES[name]
    model, runs = case.make().to("cuda"), [(Linear(7, 3), 0), (Linear(7, 3), 1), (Constant(8), 2)]
    expected = [draw(case, model, *run) for run in runs]
    use_graphs(model)
    for run, latents in zip(runs, expected, strict=True):
        assert_same(draw(case, model, *run), latents, 1e-4)
        assert len(graphs_of(model)) == case.graphs
    watched(model, Linear(3, 2))
    watched(model, Linear(3, 2), seed=1, turn=1, cuda=True)


@pytest.mark.skipif(not CUDA, reason=str(missing_cuda()))
def test_on_cuda_a_replay_evaluates_nothing_on_the_host() -> None:
    graphs, module = Graphs(), Scaled().to("cuda")
    with torch.inference_mode():
        evaluate = Evaluator(graphs, {"shift": {"of": [torch.ones(3, device="cuda")]}})
        first = evaluate(module, torch.zeros(3, device="cuda"))
        recorded = module.calls
        assert evaluate(module, torch.ones(3, device="cuda")).tolist() == [4, 4, 4] and first.tolist() == [2, 2, 2]
        assert module.calls == recorded
