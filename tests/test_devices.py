"""What is brought to a device, and waiting for it."""

from __future__ import annotations

import pytest
import torch

from disa_framework.runtime.devices import bring, wait_for


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_brought_is_there(device: str) -> None:
    there = bring(torch.arange(3), torch.device(device))
    assert there.device.type == device and there.shape == (3,)
    wait_for(there.device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_what_is_brought_to_cuda_is_not_waited_for() -> None:
    device = torch.device("cuda")
    torch.cuda._sleep(1_000_000_000)
    there = bring(torch.arange(3), device)
    assert not torch.cuda.current_stream().query()  # the device sleeps on
    wait_for(device)
    assert torch.cuda.current_stream().query() and there.tolist() == [0, 1, 2]
