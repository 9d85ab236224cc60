"""The floor under a run's time: its matrix products, convolutions and attention calls, alone and in the same order.

Weights are the run's own, as reading them is part of the work. Everything else is random and lies in one buffer for
each argument, so that a recording of thousands of shapes takes no more memory than its largest ones. A GPU is given
all of it at once, as one graph: the time in which the host launches kernels is no part of the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {
    "_linear_pointwise", "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul",
    "mm", "mv",
}  # fmt: skip
_ATTENTION = ("attention", "flash_attn")  # in the names of all kinds of it
_RANDOM = 2**20  # numbers that are drawn, on the host


class Spec(NamedTuple):
    """What matters of a tensor that a call was given.

    Attributes:
        place: of the argument among those of the call.
        shape, stride, dtype: of the tensor.
    """

    place: int | str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def extent(self) -> int:
        """Numbers from the first to the last of the tensor."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


class Recorder(TorchDispatchMode):
    """Keeps the calls that count, of all that runs within, with a `Spec` for each tensor that is no weight.

    Args:
        weights: are kept as they are.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[partial[Any]] = []
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call, name = partial(func, *args, **(kwargs or {})), func.overloadpacket.__name__
        if name in _PRODUCTS or any(part in name for part in _ATTENTION):
            self.calls.append(_with_arguments(call, self._kept))
        return call()

    def _kept(self, place: int | str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() in self._weights:
            return value
        return Spec(place, tuple(value.shape), value.stride(), value.dtype)


def replaying(calls: Sequence[partial[Any]], device: torch.device) -> Callable[[], None]:
    """Makes recorded calls again, on a device, in inference mode."""
    filled = with_tensors(calls, device)

    def run() -> None:
        for call in filled:
            call()

    if device.type != "cuda" or not calls:
        return run
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return partial(_replay, graph, filled)


def _replay(graph: torch.cuda.CUDAGraph, read: object) -> None:
    """Runs a graph; whoever may call this keeps alive what it reads."""
    graph.replay()


def with_tensors(calls: Sequence[partial[Any]], device: torch.device) -> list[partial[Any]]:
    """The calls with random tensors, which share their memory, in place of specs."""
    extents: dict[tuple[int | str, torch.dtype], int] = {}
    for value in (value for call in calls for value in (*call.args, *call.keywords.values())):
        if isinstance(value, Spec):
            key = value.place, value.dtype
            extents[key] = max(value.extent, extents.get(key, 0))
    buffers = {(place, dtype): _random(extent, dtype, device) for (place, dtype), extent in extents.items()}

    def filled(place: int | str, value: Any) -> Any:
        if not isinstance(value, Spec):
            return value
        return buffers[place, value.dtype].as_strided(value.shape, value.stride)

    return [_with_arguments(call, filled) for call in calls]


def _with_arguments(call: partial[Any], change: Callable[[int | str, Any], Any]) -> partial[Any]:
    """The call with what `change(place, value)` makes of its arguments."""
    named = {name: change(name, value) for name, value in call.keywords.items()}
    return partial(call.func, *(change(i, value) for i, value in enumerate(call.args)), **named)


def _random(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normals, the same ones over and over; of anything but floats, ones."""
    if not dtype.is_floating_point:
        return torch.ones(length, dtype=dtype, device=device)
    some = torch.randn(min(length, _RANDOM), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return some.repeat(-(-length // _RANDOM))[:length]
