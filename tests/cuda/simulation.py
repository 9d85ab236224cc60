"""A CUDA device made of the host: what a GPU does later, or in another order, is done later and in another order.

It is no faster than a test can be without a GPU, but as unforgiving:

* operations are queued on the current stream. They are done when the host waits, one stream far ahead of another as
  a seed has it, in any order that events allow. Until then their results are garbage;
* memory belongs to the stream that it was asked for on. Once it is freed that stream may write to it, whoever still
  reads there;
* tensors of different devices do not mix, and copies are waited for unless the host's memory is pinned;
* a graph computes with what lies where its inputs lay when it was recorded. All graphs of a pool share the memory of
  what they forget.

It knows nothing of kernels, their speed and their rounding, nor of all that CUDA refuses to record.
"""

from __future__ import annotations

import operator
import random
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Operation = Callable[[], object]

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
WHOLE = {"scaled_dot_product_attention"}  # is one kernel, and of many operations on the host
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def reads(name: str, given: Sequence[Tensor]) -> bool:
    """Whether the host needs to know numbers for an operation on tensors, if only to know how many there will be."""
    by_mask = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in given[1:])
    return name in READS or by_mask


class Event:
    """A point in a stream's work."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._passed: _Point | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or _device().current
        self._passed = stream.point()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _device().current).wait_event(self)

    def query(self) -> bool:
        return self._passed is None or self._passed.time is not None

    def synchronize(self) -> None:
        if self._passed:
            _device().wait("event", self._passed)

    def elapsed_time(self, end: Event) -> float:
        assert self._passed and end._passed and self._passed.time is not None and end._passed.time is not None
        return float(end._passed.time - self._passed.time)


class _Point:
    """Done when a stream has come so far; then it has a time, in operations of the device."""

    time: int | None = None

    def __call__(self) -> None:
        self.time = _device().clock


class Stream:
    """Operations in their order, which other streams know nothing of."""

    def __init__(self, device: Any = None, passing: bool = False) -> None:
        self.passing = passing  # nothing more is asked of it than is now
        self.queue: deque[Operation | tuple[_Point, ...]] = deque()
        self.speed = 10 ** _device().random.uniform(-4, 4)
        _device().streams.append(self)

    def point(self) -> _Point:
        point = _Point()
        self.queue.append(point)
        return point

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event._passed:
            self.queue.append((event._passed,))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        _device().wait("stream", self.point())

    def query(self) -> bool:
        return not self.queue

    @property
    def runnable(self) -> bool:
        while self.queue and isinstance(self.queue[0], tuple):
            if any(point.time is None for point in self.queue[0]):
                return False
            self.queue.popleft()
        return bool(self.queue)


class _Memory:
    """What tensors and their views share.

    Args:
        whole: all of it, on the host.
        stream: that it was asked for on.
    """

    def __init__(self, whole: Tensor, stream: Stream) -> None:
        self.others: set[Stream] = set()
        owner = _device().recording or stream
        weakref.finalize(self, _freed, whole, owner, self.others).atexit = False


def _freed(whole: Tensor, owner: Stream | CUDAGraph, others: set[Stream]) -> None:
    if isinstance(owner, CUDAGraph):
        owner.forgotten.append(whole)
        return
    if others and _devices:  # not before these have come to where they are now
        points = tuple(stream.point() for stream in (owner, *others))
        owner = Stream(passing=True)
        owner.queue.append(points)
    owner.queue.append(lambda: spoil(whole))


def spoil(whole: Tensor) -> None:
    """Fills memory with what nobody expects there."""
    with torch.inference_mode():
        if whole.dtype == torch.bool:
            whole.logical_not_()
        else:
            numbers = whole.is_floating_point() or whole.is_complex()
            whole.fill_(torch.finfo(whole.dtype).max if numbers else torch.iinfo(whole.dtype).max)


class Simulated(Tensor):
    """A tensor on the device.

    Attributes:
        there: its numbers, which nobody but the device may look at.
        memory: in which they lie.
    """

    there: Tensor
    memory: _Memory

    @staticmethod
    def __new__(cls, there: Tensor, memory: _Memory | None = None) -> Simulated:
        made: Simulated = torch.Tensor._make_wrapper_subclass(
            cls, there.shape, strides=there.stride(), storage_offset=there.storage_offset(), dtype=there.dtype,
            device=torch.device("cuda:0"),
        )  # fmt: skip
        made.there, made.memory = there, memory or _Memory(there, _device().current)
        return made

    def record_stream(self, stream: Any) -> None:
        self.memory.others.add(stream)

    # PyTorch's own ways to do these ask for the device's driver.

    def __getitem__(self, index: Any) -> Tensor:
        indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor)]
        if not indices:
            return Simulated(self.there[index], self.memory)
        if any(tensor.dtype == torch.bool for tensor in indices):
            _device().wait("index by a mask", _device().current.point())
            return Simulated(self.there[_there(index)])
        call = partial(operator.getitem, self.there, _there(index))
        return _device().computed(call, operator.getitem(_shapes(self), _shapes(index)))

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        done = self.is_contiguous(memory_format=memory_format)
        return self if done else torch.clone(self, memory_format=memory_format)

    def nonzero(self) -> Tensor:  # type: ignore[override]
        return torch.ops.aten.nonzero(self)

    def cuda(self, *args: Any, **options: Any) -> Tensor:
        return self

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.there.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @property
    def real(self) -> Tensor:  # type: ignore[override]
        return torch.view_as_real(self)[..., 0] if self.is_complex() else self

    @property
    def imag(self) -> Tensor:  # type: ignore[override]
        return torch.view_as_real(self)[..., 1]

    def __invert__(self) -> Tensor:
        return torch.bitwise_not(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __setitem__(self, index: Any, value: Any) -> None:
        _device().submit(partial(operator.setitem, self.there, _there(index), _there(value)))

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Simulated({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _device().take(func, args, kwargs or {})


class CUDAGraph:
    """Operations that are done again and again."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.forgotten: list[Tensor] = []
        self._pool: list[CUDAGraph] = []

    def pool(self) -> Any:
        return self._pool

    def begin(self, pool: Any) -> None:
        self._pool = [] if pool is None else pool
        self._pool.append(self)

    def replay(self) -> None:
        _device().submit(self._run)

    def _run(self) -> None:
        for graph in self._pool:
            for whole in graph.forgotten:
                spoil(whole)
        for operation in self.operations:
            operation()


class Device(TorchDispatchMode):
    """The device, and the host's side of it.

    Args:
        seed: of the order in which streams get on.

    Attributes:
        waits: how often the thread that made this has waited, and for what.
        clock: operations that are done.
        launches: operations and graphs that the host has asked for.
    """

    default: Stream
    current: Stream

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random, self.clock, self.launches = random.Random(seed), 0, 0
        self.waits: Counter[str] = Counter()
        self.recording: CUDAGraph | None = None
        self.streams: list[Stream] = []
        self._lock, self._host = threading.RLock(), threading.get_ident()

    # --- queues ---------------------------------------------------------------------------------------

    def submit(self, operation: Operation) -> None:
        if self.recording:
            self.recording.operations.append(operation)
        else:
            self.launches += 1
            self.current.queue.append(operation)

    def wait(self, what: str, *points: _Point) -> None:
        """Returns when streams have come to these points."""
        host = threading.get_ident() == self._host
        if self.recording and (host or self._refuses_all):
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.waits[what] += host
        with self._lock, torch.inference_mode():
            while any(point.time is None for point in points):
                self._get_on()

    def synchronize(self, device: object = None) -> None:
        self.wait("device", *[stream.point() for stream in self.streams])

    def _get_on(self) -> None:
        able = [stream for stream in self.streams if stream.runnable]
        if not able:
            raise RuntimeError("streams wait for each other")
        (stream,) = self.random.choices(able, [stream.speed for stream in able])
        operation = stream.queue.popleft()
        assert callable(operation)
        self.clock += not isinstance(operation, _Point)
        if stream.passing and not stream.queue:
            self.streams.remove(stream)
        operation()

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def record(
        self, graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        self.synchronize()
        graph.begin(pool)
        self._refuses_all = capture_error_mode == "global"
        with self.using(stream or Stream()):
            self.recording = graph
            try:
                yield
            finally:
                self.recording = None

    # --- operations -----------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        here = any(map(_concerns, tree_leaves((args, kwargs))))
        return self.take(func, args, kwargs) if here else func(*args, **kwargs)

    def take(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the host gets for an operation: tensors that will hold the result, or numbers, for which it waits."""
        name, schema = func.overloadpacket.__name__, func._schema
        if name not in WHOLE:
            with self:
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        if name == "_to_copy" and _moves(args[0], kwargs.get("device")):
            return self._moved(args[0], kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.ndim for tensor in given if not isinstance(tensor, Simulated)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        call = partial(func, *_there(args), **_there(kwargs))
        if reads(name, given):
            self.wait(name, self.current.point())
            return _wrapped(call())
        if schema.is_mutable:
            self.submit(call)
            return kwargs.get("out", args[0]) if schema.returns else None
        if not any("Tensor" in str(value.type) for value in schema.returns):
            return call()  # of shapes, not of numbers
        if name == "_unsafe_view" or any(value.alias_info for value in schema.returns):
            return _wrapped(call(), given[0].memory)  # type: ignore[attr-defined]
        return self.computed(None if name in EMPTY else call, func(*_shapes(args), **_shapes(kwargs)))

    def computed(self, call: Operation | None, shapes: Any) -> Any:
        """New tensors, which will hold the result of a call."""
        made = tree_map_only(Tensor, _garbage, shapes)
        if call:
            places = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
            self.submit(partial(_fill, places, call))
        return _wrapped(made)

    def _moved(self, tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A copy on the other side."""
        to_host = isinstance(tensor, Simulated)
        source = tensor.there if isinstance(tensor, Simulated) else tensor
        place = _garbage(source.to(device="meta", dtype=kwargs.get("dtype")))
        copy = partial(place.copy_, source)
        later = kwargs.get("non_blocking") and (to_host or getattr(tensor, "pinned", False))
        if later or not tensor.numel():
            self.submit(copy)
        else:
            self.wait("copy to the host" if to_host else "copy to the device", self.current.point())
            with torch.inference_mode():
                copy()
        return place if to_host else Simulated(place)


def _concerns(leaf: Any) -> bool:
    return isinstance(leaf, Simulated) or (isinstance(leaf, torch.device) and leaf.type == "cuda")


def _moves(tensor: Tensor, device: torch.device | None) -> bool:
    return device is not None and torch.device(device).type != tensor.device.type


def _there(tree: Any) -> Any:
    """What the device computes with; numbers of the host as they are now."""
    tree = tree_map_only(Tensor, lambda x: x.there if isinstance(x, Simulated) else x.clone(), tree)
    return tree_map_only(torch.device, lambda _: torch.device("cpu"), tree)


def _shapes(tree: Any) -> Any:
    tree = tree_map_only(Simulated, lambda x: x.there.to("meta"), tree)
    return tree_map_only(torch.device, lambda _: torch.device("meta"), tree)


def _garbage(shape: Tensor) -> Tensor:
    made = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)
    spoil(made)
    return made


def _fill(places: Sequence[Tensor], call: Operation) -> None:
    for place, result in zip(places, tree_leaves(call()), strict=True):
        place.copy_(result)


def _wrapped(tree: Any, memory: _Memory | None = None) -> Any:
    return tree_map_only(Tensor, lambda x: Simulated(x, memory), tree)


# --- use ----------------------------------------------------------------------------------------------------

_devices: list[Device] = []


def _device() -> Device:
    return _devices[-1]


def _pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


@contextmanager
def simulated_cuda(seed: int = 0) -> Iterator[Device]:
    """A device "cuda" for whatever follows, in this thread; models come to it by `model.to("cuda:0")`."""
    device = Device(seed)
    _devices.append(device)
    device.default = device.current = Stream()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": device.record,
            "stream": device.using,
            "set_stream": partial(setattr, device, "current"),
            "current_stream": lambda device_=None: device.current,
            "synchronize": device.synchronize,
            "reset_peak_memory_stats": lambda device_=None: None,
            "max_memory_allocated": lambda device_=None: 0,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.accelerator, "synchronize", device.synchronize)
        patch.setattr(Tensor, "pin_memory", _pinned)
        # Parameters are replaced when a model is moved: they cannot become what they are not.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        try:
            torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes them on the host, then moves them
            with torch.inference_mode(), device:
                yield device
                device.synchronize()
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            _devices.remove(device)
