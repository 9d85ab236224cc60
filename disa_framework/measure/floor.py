"""The floor under a run's time: its matrix products, convolutions and attention calls, alone and in the same order.

Weights are the run's own, as reading them is part of the work. Everything else is random and lies in one buffer for
each argument, so that a recording of thousands of shapes takes no more memory than its largest ones. A GPU is given all
of it at once, as one graph: the time in which the host launches kernels is no part of the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


class Call(NamedTuple):
    """One call that counts, with a `Spec` for each tensor that is no weight."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recorder(TorchDispatchMode):
    """Keeps the calls that count, of all that runs within.

    Args:
        weights: are kept as they are; of other tensors only the shape is.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, named = func.overloadpacket.__name__, kwargs or {}
        if name in _PRODUCTS or any(part in name for part in _ATTENTION):
            kept = tuple(self._kept(i, value) for i, value in enumerate(args))
            self.calls.append(Call(func, kept, {key: self._kept(key, value) for key, value in named.items()}))
        return func(*args, **named)

    def _kept(self, place: int | str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() in self._weights:
            return value
        return Spec(place, tuple(value.shape), value.stride(), value.dtype)


class Floor:
    """Calls that can be made again, by calling it, in inference mode.

    Args:
        calls: as they were recorded.
        device: where they are made.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        values = [value for call in calls for value in (*call.args, *call.kwargs.values())]
        specs = {value for value in values if isinstance(value, Spec)}
        buffers = {
            (place, dtype): _random(max(s.extent for s in specs if (s.place, s.dtype) == (place, dtype)), dtype, device)
            for place, dtype in {(spec.place, spec.dtype) for spec in specs}
        }
        tensors = {s: buffers[s.place, s.dtype].as_strided(s.shape, s.stride) for s in specs}

        def filled(value: Any) -> Any:
            return tensors[value] if isinstance(value, Spec) else value

        self.calls = [
            Call(op, tuple(map(filled, args)), {key: filled(value) for key, value in kwargs.items()})
            for op, args, kwargs in calls
        ]
        self._replay: Callable[[], None] = self._run
        if device.type == "cuda" and calls:
            self._run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run()
            self._replay = graph.replay

    def __call__(self) -> None:
        self._replay()

    def _run(self) -> None:
        for op, args, kwargs in self.calls:
            op(*args, **kwargs)


def _random(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normals, the same ones over and over; of anything but floats, ones."""
    if not dtype.is_floating_point:
        return torch.ones(length, dtype=dtype, device=device)
    some = torch.randn(min(length, _RANDOM), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return some.repeat(-(-length // _RANDOM))[:length]
