"""The simulated device is late, in its own order and unforgiving, as CUDA is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cuda.simulation import Device, Event, Stream, simulated_cuda

SEEDS = range(12)


def brought(*numbers: float) -> Tensor:
    return torch.tensor(numbers, device="cuda:0")


def test_results_are_there_once_someone_waits() -> None:
    with simulated_cuda() as device:
        x = brought(1.0, 2.0)
        late = (x * 2).to("cpu", non_blocking=True)
        assert late.tolist() != [2.0, 4.0]
        torch.cuda.synchronize()
        assert late.tolist() == [2.0, 4.0]
        assert (x + 1).cpu().tolist() == [2.0, 3.0]
        assert device.waits == {"copy to the device": 1, "device": 1, "copy to the host": 1}


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.all()),
    "float": lambda x: float(x[0]),
    "list": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "equal": lambda x: torch.equal(x, x),
    "pageable memory": lambda x: torch.ones(2).to(x.device, non_blocking=True),
}


@pytest.mark.parametrize("name", READS)
def test_whoever_reads_or_brings_waits(name: str) -> None:
    with simulated_cuda() as device:
        x = brought(1.0, 2.0)
        device.waits.clear()
        READS[name](x)
        assert sum(device.waits.values()) == 1


def test_pinned_memory_is_not_waited_for() -> None:
    with simulated_cuda() as device:
        x = torch.ones(2).pin_memory().to("cuda:0", non_blocking=True)
        assert not device.waits
        assert x.tolist() == [1.0, 1.0]


def test_host_and_device_do_not_mix() -> None:
    with simulated_cuda(), pytest.raises(RuntimeError, match="same device"):
        brought(1.0, 2.0) + torch.ones(2)


def compute(device: Device, ordered: bool) -> bool:
    """Whether a stream that reads what another makes reads it right."""
    x, other = brought(1.0), torch.cuda.Stream()
    for _ in range(5):
        x = x + 1
    if ordered:
        other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        y = (x * 2).to("cpu", non_blocking=True)
    device.synchronize()
    return y.item() == 12


def outcomes(attempt: Callable[[Device, bool], bool], careful: bool) -> list[bool]:
    """Of an attempt, in as many orders of the streams."""
    right = []
    for seed in SEEDS:
        with simulated_cuda(seed) as device:
            right.append(attempt(device, careful))
    return right


@pytest.mark.parametrize("ordered", [True, False])
def test_streams_are_in_order_only_where_they_wait_for_each_other(ordered: bool) -> None:
    right = outcomes(compute, ordered)
    assert all(right) if ordered else not all(right) and any(right)


def release(device: Device, recorded: bool) -> bool:
    """Whether a stream reads memory right that the one it belongs to has given to others."""
    x, other = brought(1.0) + 1, torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    if recorded:
        x.record_stream(other)
    with torch.cuda.stream(other):
        for _ in range(5):
            y = x * 2
        late = y.to("cpu", non_blocking=True)
    del x
    device.synchronize()
    return late.item() == 4


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_is_used_anew_once_it_is_released_unless_another_stream_is_known_to_read_it(recorded: bool) -> None:
    right = outcomes(release, recorded)
    assert all(right) if recorded else not all(right)


def test_events_say_whether_they_have_passed_and_when() -> None:
    with simulated_cuda() as device:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        x = brought(1.0)
        start.record()
        for _ in range(5):
            x = x + 1
        end.record()
        assert start.query() is end.query() is False
        end.synchronize()
        assert end.query() and start.elapsed_time(end) >= 5 and device.waits["event"] == 1


def test_streams_that_wait_for_each_other_are_an_error() -> None:
    with simulated_cuda() as device:
        other, here, there = Stream(), Event(), Event()
        there.record(other)
        other.queue.clear()  # what would have passed never does
        here.wait(other)
        there.wait()
        with pytest.raises(RuntimeError, match="streams wait for each other"):
            torch.cuda.synchronize()
        for stream in device.streams:
            stream.queue.clear()


def test_a_graph_computes_anew_from_the_same_places() -> None:
    with simulated_cuda():
        x, graph = brought(1.0, 2.0), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
        assert y.tolist() != [2.0, 4.0]  # recorded, and not computed
        graph.replay()
        assert y.tolist() == [2.0, 4.0]
        x += 1
        graph.replay()
        assert y.tolist() == [4.0, 6.0]


def test_a_graph_reads_garbage_where_its_input_was_released() -> None:
    with simulated_cuda():
        x, graph = brought(1.0, 2.0), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2
        del x
        graph.replay()
        assert y.tolist() != [2.0, 4.0]


def test_graphs_of_a_pool_share_what_they_have_released() -> None:
    with simulated_cuda():
        x, one, two = brought(1.0, 2.0), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(one):
            first = x * 2
        with torch.cuda.graph(two, one.pool()):
            second = x * 3
        one.replay()
        kept, there = first.clone(), first.detach()
        del first, there
        two.replay()
        assert kept.tolist() == [2.0, 4.0] and second.tolist() == [3.0, 6.0]


def test_nobody_waits_while_a_graph_is_recorded() -> None:
    with simulated_cuda():
        x = brought(1.0)
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(
            torch.cuda.CUDAGraph()
        ):
            x.item()
