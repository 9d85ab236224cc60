"""Attention: its back ends, and the cache of keys and values.

Letters: `B` batch, `h` heads, `L` queries, `M` keys, `d` width of a head.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disa_framework.runtime.devices import cpu_units

Backend = Literal["sdpa", "flash", "auto"]
"""`sdpa` is PyTorch's, `flash` is the package flash-attn, `auto` is flash-attn wherever it can be used."""

_SCORES = 2**20
"""That are computed at once, so that they are still near the core when they are read."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    backend: Backend = "sdpa",
) -> Tensor:
    """Attention of `q [B, h, L, d]` to `k, v [B, h, M, d]`, heads joined: `[B, L, h d]`.

    Args:
        mask: `[..., L, M]`, True (or 0) where a query may look; adds to the scores if it is floating.
        causal: query `i` sees keys `0 … M - L + i`; not together with a mask.
        dropout: of the attention weights.
        backend: which implementation computes it.

    Raises:
        ValueError: if `flash` cannot compute this.
    """
    if backend != "sdpa" and (backend == "flash" or _flash_fits(q, k, mask)):
        return _flash(q, k, v, mask, causal, dropout)
    causal = causal and q.shape[2] > 1  # the last query sees everything
    if mask is None and not causal and not dropout and _products_are_faster(q, k):
        compute = _opaque if torch.compiler.is_compiling() and not torch.is_grad_enabled() else _by_products
        return compute(q, k, v).transpose(1, 2).flatten(2)
    if causal and q.shape[2] != k.shape[2]:
        mask, causal = _causal_mask(q.shape[2], k.shape[2], q.device), False
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def use_attention(model: nn.Module, backend: Backend) -> None:
    """Makes every attention layer of a model compute with a back end.

    Raises:
        ValueError: no such back end, or it is not installed.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"attention must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "flash" and not _has_flash():
        raise ValueError("flash-attn is not installed: pip install flash-attn --no-build-isolation")
    for module in model.modules():
        if isinstance(module, AttentionLayer):
            module._backend = backend


class AttentionLayer(nn.Module):
    """Base of all layers that attend; `use_attention` finds them by it."""

    _backend: Backend = "sdpa"

    @property
    def backend(self) -> Backend:
        """What computes it, which changes the outcome by rounding alone."""
        return self._backend


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer, `[B, h, M, d]` each, allocated once for the whole run."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, batch_size: int, heads: int, length: int, width: int, like: Tensor) -> KVCache:
        """Room for `length` keys and values.

        Args:
            batch_size, heads, length, width: `B`, `h`, `M`, `d`.
            like: gives device and precision, unless autocast gives keys and values another one.
        """
        device = like.device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else like.dtype
        keys = like.new_empty(batch_size, heads, length, width, dtype=dtype)
        return cls(keys, torch.empty_like(keys))

    def write(self, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts `k, v [B, h, L, d]` at `start …`, and returns all up to their end: `[B, h, start + L, d]`.

        What stood behind `start` is given up, so a stage that is proposed twice changes nothing.
        """
        end, rows = start + k.shape[2], slice(0, len(k))
        self.keys[rows, :, start:end] = k
        self.values[rows, :, start:end] = v
        return self.keys[rows, :, :end], self.values[rows, :, :end]


@dataclass(frozen=True)
class Past:
    """What a layer has seen: the first `start` keys of its cache. The keys of the tokens at hand are written behind
    them, so that all lie in one piece, and stay or are overwritten by the next to come."""

    cache: KVCache
    start: int


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[B, h, L, d]`, as two products with the softmax between them."""
    (B, h, L, d), M = q.shape, k.shape[2]
    count = max(1, _SCORES // (L * M))
    parts = zip(*(x.reshape(B * h, -1, d).split(count) for x in (q, k, v)), strict=True)
    zero, out = q.new_zeros(()), list[Tensor]()
    for queries, keys, values in parts:
        scores = torch.baddbmm(zero, queries, keys.mT, beta=0, alpha=d**-0.5)
        out.append(torch.bmm(scores.softmax(dim=-1), values))
    return torch.cat(out).view(B, h, L, d)


# PyTorch's compiler would make a graph of each number of parts.
_opaque = torch.library.custom_op("disa_framework::attention", _by_products, mutates_args=())


@_opaque.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _products_are_faster(q: Tensor, k: Tensor) -> bool:
    """Whether two products take less time than PyTorch's attention: in bfloat16 on CPUs that multiply it, and have no
    tiles, which PyTorch's attention needs for it. Scores that gradients keep must not fill the memory."""
    kept = torch.is_grad_enabled() and q.shape[2] * k.shape[2] > _SCORES
    return q.is_cpu and q.dtype == torch.bfloat16 and not kept and _HALF_WITHOUT_TILES


# A constant, as PyTorch's compiler would break its graph where this is asked.
_HALF_WITHOUT_TILES = bool(cpu_units().get("avx512_bf16")) and not cpu_units().get("amx_tile")


def _causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _has_flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@cache
def _computes_flash(device: torch.device) -> bool:
    """Whether it is installed, and the device is an Ampere at least."""
    return _has_flash() and torch.cuda.get_device_capability(device) >= (8, 0)


def _flash_fits(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    half = q.dtype == k.dtype and q.dtype in (torch.float16, torch.bfloat16)
    return mask is None and q.is_cuda and half and _computes_flash(q.device)


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    if not _flash_fits(q, k, mask):
        raise ValueError(
            "flash-attn computes on CUDA (Ampere or newer), in half precision, without a mask; this is "
            f"{q.dtype} on {q.device.type}"
            f"{'' if mask is None else ' with a mask'}: use attention 'auto' or 'sdpa', or precision bf16"
        )
    from flash_attn import flash_attn_func

    joined = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), dropout_p=dropout, causal=causal)
    return joined.flatten(2)
