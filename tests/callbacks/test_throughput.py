"""Times of images: of the host, or of a device that nobody waits for before they are asked for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from disa_framework.callbacks import Throughput
from tests.cuda.simulation import simulated_cuda

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


def test_on_cuda_the_time_is_the_devices_which_is_waited_for_when_it_is_asked_for() -> None:
    with simulated_cuda() as device:
        timer, module = Throughput(), SimpleNamespace(device=torch.device("cuda"))
        x = torch.zeros(1, device="cuda")
        device.waits.clear()
        for place, (count, operations) in enumerate([(4, 100), (5, 40), (3, 24)]):
            batch: Any = SimpleNamespace(indices=torch.arange(count))
            timer.on_predict_batch_start(None, module, batch, place)  # type: ignore[arg-type]
            for _ in range(operations):
                x += 1
            timer.on_predict_batch_end(None, module, None, batch, place)  # type: ignore[arg-type]
            x += 1  # between batches, which is not their time
        assert not device.waits
        assert timer.seconds_per_image == pytest.approx(0.064 / 8)  # an operation takes a millisecond
        assert device.waits["event"]


@CUDA
def test_a_real_device_is_not_waited_for_either() -> None:
    timer, module = Throughput(), SimpleNamespace(device=torch.device("cuda"))
    for place in range(2):
        batch: Any = SimpleNamespace(indices=torch.arange(4))
        timer.on_predict_batch_start(None, module, batch, place)  # type: ignore[arg-type]
        torch.cuda._sleep(1_000_000_000)
        before = time.perf_counter()
        timer.on_predict_batch_end(None, module, None, batch, place)  # type: ignore[arg-type]
        assert time.perf_counter() - before < 0.1  # the device sleeps on
    assert timer.seconds_per_image is not None and timer.seconds_per_image > 0.05
