"""Times of images: of the host, or of a device that nobody waits for before they are asked for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from disa_framework.measure.throughput import Throughput


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_notes_the_time_itself_and_is_not_waited_for() -> None:
    timer, module = Throughput(), SimpleNamespace(device=torch.device("cuda"))
    x = torch.zeros(8192, 8192, device="cuda")
    for place in range(2):
        batch: Any = SimpleNamespace(indices=torch.arange(4))
        timer.on_predict_batch_start(None, module, batch, place)  # type: ignore[arg-type]
        for _ in range(100):  # for a second or more
            x = x @ x
        before = time.perf_counter()
        timer.on_predict_batch_end(None, module, None, batch, place)  # type: ignore[arg-type]
        assert time.perf_counter() - before < 0.1  # the device works on
    assert timer.seconds_per_image is not None and timer.seconds_per_image > 0.05
