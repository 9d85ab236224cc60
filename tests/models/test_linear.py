"""The linear layer computes what PyTorch's does, whichever library multiplies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from disa_framework.models import linear
from disa_framework.models.linear import Linear

ONEDNN = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")
LARGE, SMALL = (2, 33, 256), (3, 64)


def expected(layer: Linear, x: Tensor) -> Tensor:
    out = F.linear(x, layer.weight, layer.bias)
    return F.gelu(out) if layer.gelu else out


@ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_it_is_pytorchs(shape: tuple[int, ...], gelu: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN", True)
    layer = Linear(shape[-1], 512, bias, gelu)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected(layer, x), rtol=0, atol=1e-5)
        turned = x.transpose(0, -2).contiguous().transpose(0, -2)  # the same numbers, not in one piece
        torch.testing.assert_close(layer(turned), expected(layer, x), rtol=0, atol=1e-5)


@ONEDNN
def test_gradients_and_autocast_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN", True)
    layer = Linear(256, 512, gelu=True)
    x = torch.randn(LARGE, requires_grad=True, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    (wanted,) = torch.autograd.grad(expected(layer, x).sum(), x)
    assert torch.equal(found, wanted)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
