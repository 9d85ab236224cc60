"""Linear layers compute what PyTorch's do, whichever library multiplies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.constant_memory import resident
from disa_framework.runtime import products

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")

MULTIPLIES = products.ONEDNN  # on this machine
LARGE, SMALL = (2, 33, 256), (3, 64)


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ONEDNN", True)


def layer_and_input(shape: tuple[int, ...], bias: bool = True) -> tuple[nn.Linear, Tensor]:
    layer = nn.Linear(shape[-1], 512, bias)
    products.use_fast_products(layer)
    return layer, torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_it_is_pytorchs(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = layer_and_input(shape, bias)
    assert isinstance(layer, products.OneDNNLinear) and list(layer.state_dict()) == ["weight", "bias"][: 1 + bias]
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
        turned = x.transpose(0, -2).contiguous().transpose(0, -2)  # the same numbers, not in one piece
        torch.testing.assert_close(layer(turned), expected, rtol=0, atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_it_can_be() -> None:
    layer, x = layer_and_input(LARGE)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        out = layer.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.02)


def test_gradients_and_autocast_are_pytorchs() -> None:
    layer, x = layer_and_input(LARGE)
    x.requires_grad_()
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    (wanted,) = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).sum(), x)
    assert torch.equal(found, wanted)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_layers_of_another_class_stay_as_they_are() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(2, 2), nn.Linear(2, 2))
    products.use_fast_products(model)
    assert [type(layer) for layer in model] == [Own, products.OneDNNLinear]


@pytest.mark.skipif(not MULTIPLIES, reason="oneDNN is not taken here")
def test_products_of_many_sizes_hold_little_memory() -> None:
    layer, held = layer_and_input(LARGE)[0], []
    with torch.inference_mode():
        for rows in range(100, 400):
            layer(torch.zeros(rows, LARGE[-1]))
            held.append(resident())
    assert held[-1] - held[100] < 64  # MiB, for 200 sizes more; 128 where all are kept
