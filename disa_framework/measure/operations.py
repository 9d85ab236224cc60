"""Floating-point operations: how many a run has, and how many a second a device can do.

A multiplication and the addition that goes with it are two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from disa_framework.measure.floor import with_tensors
from disa_framework.measure.latency import now
from disa_framework.runtime.products import use_fast_products

_WIDTH = {"cpu": 2048, "cuda": 8192}  # of a product that is large enough to be nothing but arithmetic
_REPEATS = 5
_TICK = 1e-9  # seconds; a clock may not have moved

Shape = Sequence[int]


def _linear(x: Shape, weight: Shape, *others: Any, **named: Any) -> int:
    return 2 * prod(x) * weight[0]


def _attention(query: Shape, key: Shape, value: Shape, *others: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


# What PyTorch's counter does not know.
_FORMULAS = {
    torch.ops.mkldnn._linear_pointwise: _linear,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


def operations(calls: Sequence[partial[Any]], device: torch.device) -> int:
    """Of recorded calls, see `floor.Recorder`; makes them once more."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        for call in with_tensors(calls, device):
            call()
    return counter.get_total_flops()


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, at best of several, in the precision in which it is called."""
    width = _WIDTH.get(device.type, _WIDTH["cpu"])
    layer = nn.Sequential(nn.Linear(width, width, bias=False, device=device, dtype=dtype))
    use_fast_products(layer)
    x, seconds = torch.ones(width, width, device=device, dtype=dtype), list[float]()
    for _ in range(1 + _REPEATS):
        begun = now(device)
        layer(x)
        seconds.append(now(device) - begun)
    return 2 * width**3 / max(min(seconds[1:]), _TICK)
