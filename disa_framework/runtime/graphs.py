"""CUDA graphs: kernels that are recorded once, and then run without the host starting each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


class Recording:
    """A function's kernels as one CUDA graph.

    The function must have run before, must not wait for the device, and must leave nothing but its result.

    Args:
        function: makes a tensor on a GPU.
        inputs: tensors on the GPU that it reads; a call of the recording writes later ones there.

    Raises:
        RuntimeError: if the function does what cannot be recorded.
    """

    def __init__(self, function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.graph = torch.cuda.CUDAGraph()
        # Only what this thread does may spoil the graph: others copy batches meanwhile.
        with torch.cuda.graph(self.graph, pool=_pool(), capture_error_mode="thread_local"):
            self.output = function()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for inputs of the same shapes."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


@cache
def _pool() -> Any:
    """Memory of all graphs: one runs at a time, and its result is copied before the next does."""
    return torch.cuda.graph_pool_handle()
