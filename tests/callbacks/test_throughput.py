"""Times of images: of the host, or of a device that nobody waits for before they are asked for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from disa_framework.callbacks import Throughput

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def draw(timer: Throughput, device: str, *batches: tuple[int, float]) -> None:
    """Batches of so many images that take so many seconds."""
    module: Any = SimpleNamespace(device=torch.device(device))
    for place, (count, seconds) in enumerate(batches):
        batch = SimpleNamespace(indices=torch.arange(count))
        timer.on_predict_batch_start(None, module, batch, place)  # type: ignore[arg-type]
        time.sleep(seconds)
        timer.on_predict_batch_end(None, module, None, batch, place)  # type: ignore[arg-type]


def test_the_first_batch_warms_up_unless_it_is_the_only_one() -> None:
    timer = Throughput()
    assert timer.seconds_per_image is None
    draw(timer, "cpu", (2, 0.1))
    assert timer.seconds_per_image == pytest.approx(0.05, rel=0.5)
    draw(timer, "cpu", (1, 0.02), (4, 0.03))
    assert timer.seconds_per_image == pytest.approx(0.01, rel=0.5)


class Event:
    """A CUDA event whose device is a second behind, and takes half a second more with every event."""

    recorded, waited = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream == "the stream"
        type(self).recorded += 1
        self.milliseconds = 1000 + 500 * self.recorded

    def synchronize(self) -> None:
        type(self).waited += 1

    def elapsed_time(self, end: Event) -> float:
        assert self.waited
        return end.milliseconds - self.milliseconds


def test_cuda_is_waited_for_when_the_time_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    timer = Throughput()
    draw(timer, "cuda", (5, 0.0), (5, 0.0), (3, 0.0))
    assert (Event.recorded, Event.waited) == (6, 0)
    assert timer.seconds_per_image == pytest.approx(1 / 8) and Event.waited == 2


@CUDA
def test_on_cuda_the_time_is_the_devices() -> None:
    timer, module = Throughput(), SimpleNamespace(device=torch.device("cuda"))
    for place in range(2):
        batch: Any = SimpleNamespace(indices=torch.arange(4))
        timer.on_predict_batch_start(None, module, batch, place)  # type: ignore[arg-type]
        torch.cuda._sleep(1_000_000_000)
        before = time.perf_counter()
        timer.on_predict_batch_end(None, module, None, batch, place)  # type: ignore[arg-type]
        assert time.perf_counter() - before < 0.1  # the device sleeps on
    assert timer.seconds_per_image is not None and timer.seconds_per_image > 0.05
