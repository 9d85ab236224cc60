"""Tables that a model needs as precise as they were made, whatever precision its weights are brought to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def unrounded(module: nn.Module) -> Iterator[None]:
    """Buffers that are rounded meanwhile, as by `module.bfloat16()`, are as they were before.

    They move along to another device. An angle is a position times a frequency: with eight bits of the frequency, the
    fiftieth position is off by a tenth of a radian.
    """
    before = dict(module.named_buffers())
    yield
    for name, buffer in before.items():
        owner, _, leaf = name.rpartition(".")
        moved = module.get_buffer(name)
        if moved.dtype != buffer.dtype == torch.promote_types(moved.dtype, buffer.dtype):
            setattr(module.get_submodule(owner), leaf, buffer.to(moved.device))


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
