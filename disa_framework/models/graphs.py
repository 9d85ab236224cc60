"""CUDA graphs: a GPU is told once what an evaluation consists of, and then by one call instead of one a kernel.

A graph computes from what lies at fixed addresses. Weights are read where they are; inputs are copied to their places
at every call, constants once a stage. So a graph belongs to a function and to the shapes that it is given: step counts
make no new ones, and stages of equal shapes share them. On other devices than CUDA a replay is the function itself,
called on the copies.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]
Result = TypeVar("Result")

Tree = Any
"""Tensors, and all else that can be hashed, in lists, tuples, dictionaries and dataclasses."""


class Graphs:
    """Recorded evaluations of a model.

    Args:
        most: graphs that are kept; beyond it the one is given up that was asked for the longest time ago.

    Raises:
        ValueError: none is to be kept.
    """

    def __init__(self, most: int = 1024) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1 graph, got {most}")
        self.most = most
        self.forget()

    def forget(self) -> None:
        """Gives all graphs up, as weights lie elsewhere now, or the model computes in another way."""
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._places: WeakValueDictionary[Hashable, _Places] = WeakValueDictionary()  # lives as long as its graphs
        self._recorder = GraphRecorder()

    def __len__(self) -> int:
        return len(self._graphs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Graphs, (self.most,)  # the copy of a model has weights of its own

    def usable(self) -> bool:
        """Whether evaluations are recorded now: in inference mode, and not under autocast, which keeps rounded weights
        for itself and drops them. Of that a warning tells."""
        if torch.is_autocast_enabled("cuda"):
            warnings.warn("drawing without CUDA graphs, as under mixed precision weights do not stay", stacklevel=2)
            return False
        return torch.is_inference_mode_enabled()

    def graph(self, function: Function, inputs: Tree, constants: Tree) -> Graph:
        """The one for this function and these shapes."""
        key = (function, _flat(inputs)[0], _flat(constants)[0])
        if key not in self._graphs:
            moving, fixed = self._placed("inputs", inputs), self._placed("constants", constants)
            self._graphs[key] = self._record(partial(function, *moving.tree, **fixed.tree), moving, fixed)
            if len(self) > self.most:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _record(self, run: Callable[[], Tensor], inputs: _Places, constants: _Places) -> Graph:
        output = run()
        if output.is_cuda:
            return Graph(inputs, constants, *self._recorder.record(run, output.device))
        return Graph(inputs, constants, output, lambda: output.copy_(run()))

    def _placed(self, role: str, tree: Tree) -> _Places:
        """Places with the tree's tensors in them; graphs that are given the same shapes share them."""
        shapes, tensors = _flat(tree)
        places = self._places.get((role, shapes)) or _Places(tree)
        self._places[role, shapes] = places
        places.fill(tensors)
        return places


class _Places:
    """Where copies of a tree's tensors lie for good.

    Attributes:
        tree: of the copies.
        source: what filled them last.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = _copied(tree)
        self.source: object = None
        _, self._tensors = _flat(self.tree)
        self._alike: dict[torch.dtype, list[int]] = {}
        for i, tensor in enumerate(self._tensors):
            self._alike.setdefault(tensor.dtype, []).append(i)

    def fill(self, tensors: list[Tensor], source: object = None) -> None:
        """Puts tensors of the same shapes there, by one kernel for each precision."""
        for places in self._alike.values():
            torch._foreach_copy_([self._tensors[i] for i in places], [tensors[i] for i in places])
        self.source = source


@dataclass(frozen=True)
class Graph:
    """What a function does with what lies in some places, and where it leaves the result."""

    inputs: _Places
    constants: _Places
    output: Tensor
    replay: Callable[[], object]


class Evaluator:
    """Calls functions that share what is fixed for a stage: `evaluate(function, *inputs)` is
    `function(*inputs, **constants)`.

    Args:
        graphs: by which functions are evaluated; `None` if they are called.
        constants: are copied when a graph first needs them, and not again.
    """

    def __init__(self, graphs: Graphs | None, constants: dict[str, Tree]) -> None:
        self._graphs, self._constants = graphs, constants
        self._found: dict[Hashable, Graph] = {}
        self._mark = object()  # for places to remember, which outlive this and must not keep its tensors

    @property
    def records(self) -> bool:
        """Whether functions are evaluated by graphs."""
        return self._graphs is not None and self._graphs.usable()

    def __call__(self, function: Function, *inputs: Tree) -> Tensor:
        """
        Args:
            function: is found again by being equal: a module, a method of one, or a value that has these; one that is
                made anew is recorded anew. What it returns depends on weights, inputs and constants alone.
            inputs: are copied at every call. A number that varies would make a graph for each of its values: give a
                tensor.
        """
        if self._graphs is None or not self.records:
            return function(*inputs, **self._constants)
        shapes, tensors = _flat(inputs)
        key = function, shapes
        if key not in self._found:
            self._found[key] = self._graphs.graph(function, inputs, self._constants)
        graph = self._found[key]
        if graph.constants.source is not self._mark:
            graph.constants.fill(_flat(self._constants)[1], self._mark)
        graph.inputs.fill(tensors)
        graph.replay()
        return graph.output.clone()  # the next replay writes there


class GraphRecorder:
    """Records calls of functions without arguments, on a CUDA device.

    Recordings of one recorder share their memory. That is safe where they are replayed one after another, what one
    leaves behind is copied before the next begins, and nothing else in there outlives a replay.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def record(self, run: Callable[[], Result], device: torch.device) -> tuple[Result, Callable[[], object]]:
        """Where the result will lie, and what computes it anew."""
        stream = self._stream = self._stream or torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run()  # libraries ask for memory when they first see a stream, which must not happen in a recording
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which write images meanwhile, may use the device as they like.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            out = run()
        self._pool = graph.pool()
        return out, graph.replay


class Recorded(nn.Module):
    """Base of modules that have evaluations recorded, where there are graphs; `use_graphs` finds them by it."""

    graphs: Graphs | None = None

    def evaluator(self, **constants: Tree) -> Evaluator:
        """Calls functions with what is fixed for a stage, by graphs if there are any."""
        return Evaluator(self.graphs, constants)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.graphs is not None:
            self.graphs.forget()  # weights are about to move
        return super()._apply(fn, recurse)


def use_graphs(model: nn.Module, on: bool = True) -> None:
    """Has a model's evaluations recorded as CUDA graphs, when they are first called, or no longer.

    Graphs read weights where these were. A model that is moved as a whole forgets them; where only a part is moved, or
    parameters are replaced, call this once more.
    """
    graphs = Graphs() if on else None
    for module in _recorded(model):
        module.graphs = graphs


@contextmanager
def without_graphs(model: nn.Module) -> Iterator[None]:
    """The model as it is without graphs, for whoever watches what it computes."""
    before = [(module, module.graphs) for module in _recorded(model)]
    for module, _ in before:
        module.graphs = None
    try:
        yield
    finally:
        for module, graphs in before:
            module.graphs = graphs


def _recorded(model: nn.Module) -> list[Recorded]:
    return [module for module in model.modules() if isinstance(module, Recorded)]


# --- trees ------------------------------------------------------------------------------------------------


def _flat(tree: Tree) -> tuple[Hashable, list[Tensor]]:
    """All of a tree that a recording holds fast, shapes and what is no tensor, and its tensors."""
    leaves: list[Any] = []
    _collect(tree, leaves)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tuple([(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves]), tensors


def _collect(tree: Tree, leaves: list[Any]) -> None:
    """Appends all that hangs on the branches, and what tells the branches apart."""
    if isinstance(tree, Tensor):
        leaves.append(tree)
    elif isinstance(tree, list | tuple):
        leaves += [type(tree), len(tree)]
        for branch in tree:
            _collect(branch, leaves)
    elif isinstance(tree, dict):
        _collect(list(tree.items()), leaves)
    elif is_dataclass(tree):
        leaves.append(type(tree))
        _collect(vars(tree), leaves)
    elif isinstance(tree, float):
        raise TypeError(f"the number {tree} would be part of a recording, and each other one of another: give a tensor")
    else:
        leaves += [type(tree), tree]


def _copied(tree: Tree) -> Tree:
    """The tree with copies of its tensors."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, list | tuple):
        return type(tree)(*map(_copied, tree)) if hasattr(tree, "_fields") else type(tree)(map(_copied, tree))
    if isinstance(tree, dict):
        return {name: _copied(branch) for name, branch in tree.items()}
    return replace(tree, **_copied(vars(tree))) if is_dataclass(tree) else tree  # type: ignore[type-var]
