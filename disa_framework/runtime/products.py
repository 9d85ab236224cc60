"""Matrix products by whichever of PyTorch's two libraries is faster.

On CPUs PyTorch multiplies float32 with MKL, which leaves the 512-bit units of other makers than Intel unused, and so
half of what they can do; oneDNN, which PyTorch carries too, uses them. Results differ by rounding. In bfloat16 PyTorch
takes oneDNN, too, and asking it directly saves a twentieth.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORTH_IT = 2**20
"""Products of numbers in a call from which on oneDNN's longer start is made up for."""

_KNOWN = torch.float32, torch.bfloat16


def use_fast_products(model: nn.Module) -> None:
    """Has a model's linear layers multiply with oneDNN where that is faster. Parameters and their names stay."""
    if ONEDNN:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear


class OneDNNLinear(nn.Linear):
    """As PyTorch's, multiplied by oneDNN where no gradient and no other precision is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_plain(x):
            if torch.compiler.is_compiling():
                return _opaque(x, self.weight, self.bias)
            if x.numel() * self.out_features >= _WORTH_IT:
                return _by_onednn(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")


# PyTorch's compiler would look into oneDNN's function, and accepts it for constant weights alone.
_opaque = torch.library.custom_op("disa_framework::linear", _by_onednn, mutates_args=())


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _is_plain(x: Tensor) -> bool:
    """Whether it is on the CPU, and neither gradients nor another precision is asked for."""
    return x.is_cpu and x.dtype in _KNOWN and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _onednn_is_faster() -> bool:
    """Whether the CPU has 512-bit units that MKL does not use, as far as the system tells."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return not intel and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _onednn_is_faster()
"""Whether it multiplies."""
if ONEDNN:
    # oneDNN, and PyTorch's layer around it, keep the machine code of as many products as this, each for one size, and
    # ask when they are first used. A masked model has hundreds of sizes, and would hold 3 MiB a stage.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
