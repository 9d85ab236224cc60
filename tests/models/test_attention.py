"""Attention in every back end is the formula, and a cache changes nothing."""

from __future__ import annotations

import importlib.machinery
import math
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from disa_framework import Guidance
from disa_framework.nn import attention
from disa_framework.nn.attention import AttentionLayer, Backend, KVCache, Past, attend, use_attention
from disa_framework.nn.transformer import Block
from tests.models.tiny import draw, tiny_mar

B, h, d = 2, 3, 4


def qkv(queries: int, keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal `q [B, h, L, d]` and `k, v [B, h, M, d]`."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, h, length, d, generator=generator) for length in (queries, keys, keys))
    return q, k, v


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The formula in float64, heads joined; `bias` adds to the scores."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.mT / math.sqrt(d)
    scores = scores if bias is None else scores + bias
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2).float()


def closed(seen: Tensor) -> Tensor:
    """What adds to the scores where a query may look at `seen` places alone."""
    return torch.zeros(seen.shape).masked_fill(~seen, -math.inf)


# --- the formula ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (2, 5), (1, 5), (5, 2)])
def test_attention_is_the_softmax_formula(queries: int, keys: int) -> None:
    q, k, v = qkv(queries, keys)
    out = attend(q, k, v)
    assert out.shape == (B, queries, h * d)
    torch.testing.assert_close(out, softmax_attention(q, k, v))


def test_a_mask_of_truths_says_where_a_query_may_look() -> None:
    q, k, v = qkv(3, 5)
    seen = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool()
    torch.testing.assert_close(attend(q, k, v, seen), softmax_attention(q, k, v, closed(seen)))
    rows = torch.stack((seen, seen.flip(0)))[:, None]  # one for each sample
    torch.testing.assert_close(attend(q, k, v, rows), softmax_attention(q, k, v, closed(rows)))


def test_a_mask_of_numbers_adds_to_the_scores() -> None:
    q, k, v = qkv(3, 5)
    bias = torch.randn(B, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attend(q, k, v, bias), softmax_attention(q, k, v, bias))


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 5), (1, 5), (1, 1)])
def test_a_causal_query_sees_the_keys_up_to_its_own_from_the_end(queries: int, keys: int) -> None:
    q, k, v = qkv(queries, keys)
    last = torch.arange(queries)[:, None] + keys - queries
    bias = closed(torch.arange(keys) <= last)
    torch.testing.assert_close(attend(q, k, v, causal=True), softmax_attention(q, k, v, bias))


def test_dropout_is_for_training_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = Block(12, 3, attn_dropout=0.5, proj_dropout=0.5), torch.randn(2, 5, 12)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


# --- back ends --------------------------------------------------------------------------------------------


class Flash(types.ModuleType):
    """Stands in for the package flash-attn: computes with PyTorch in its layout, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
        self.asked: list[dict[str, Any]] = []

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        self.asked.append({"q": q.shape, "k": k.shape, "v": v.shape, **options})
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        keys, queries = k.shape[2], q.shape[2]
        seen = torch.ones(queries, keys).bool().tril(keys - queries) if options["causal"] else None
        return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    """flash-attn, as if installed."""
    package = Flash()
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return package


@pytest.fixture
def flash_on_cpu(flash: Flash, monkeypatch: pytest.MonkeyPatch) -> Flash:
    """flash-attn, as if it computed everywhere."""
    monkeypatch.setattr(attention, "_flash_fits", lambda q, k, mask: mask is None)
    return flash


@pytest.fixture
def no_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flash-attn, even where it is installed."""
    monkeypatch.setattr(attention, "_has_flash", lambda: False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["flash", "auto"])
def test_flash_gets_heads_behind_places_and_gives_the_same_numbers(
    backend: Backend, causal: bool, flash_on_cpu: Flash
) -> None:
    q, k, v = qkv(3, 5)
    out = attend(q, k, v, causal=causal, dropout=0.25, backend=backend)
    (asked,) = flash_on_cpu.asked
    assert asked == {"q": (B, 3, h, d), "k": (B, 5, h, d), "v": (B, 5, h, d), "dropout_p": 0.25, "causal": causal}
    torch.testing.assert_close(out, attend(q, k, v, causal=causal))


def test_auto_leaves_what_has_a_mask_to_pytorch(flash_on_cpu: Flash) -> None:
    q, k, v = qkv(3, 5)
    seen = torch.ones(3, 5).bool().tril()
    assert torch.equal(attend(q, k, v, seen, backend="auto"), attend(q, k, v, seen))
    assert not flash_on_cpu.asked


@pytest.mark.parametrize("causal", [False, True])
def test_auto_on_a_cpu_is_pytorch_s_to_the_bit(causal: bool, flash: Flash) -> None:
    q, k, v = (x.bfloat16() for x in qkv(3, 5))
    assert torch.equal(attend(q, k, v, causal=causal, backend="auto"), attend(q, k, v, causal=causal))
    assert not flash.asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_that_cannot_compute_says_what_can(dtype: torch.dtype, flash: Flash) -> None:
    q, k, v = (x.to(dtype) for x in qkv(3, 3))
    with pytest.raises(ValueError, match=rf"this is {dtype} on cpu: use attention 'auto' or 'sdpa'"):
        attend(q, k, v, backend="flash")
    with pytest.raises(ValueError, match="with a mask"):
        attend(q, k, v, torch.ones(3, 3).bool(), backend="flash")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_mixed_precision_caches_are_as_precise_as_what_is_put_there(dtype: torch.dtype) -> None:
    like = torch.zeros(1)
    with torch.autocast("cpu", dtype):
        cache = KVCache.empty(2, 3, 4, 8, like)
    assert cache.keys.dtype == cache.values.dtype == dtype
    assert KVCache.empty(2, 3, 4, 8, like).keys.dtype == torch.float32


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("room", [1, 16, 2**20])
def test_two_products_are_as_near_to_the_formula_as_bfloat16_is(
    room: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_HALF_WITHOUT_TILES", True)
    monkeypatch.setattr(attention, "_SCORES", room)
    q, k, v = (x.bfloat16() for x in qkv(3, 5))
    compute = torch.compile(attend, backend="eager", fullgraph=True) if compiled else attend
    with torch.inference_mode():
        seen = torch.ones(3, 5).bool()
        for cached in (k[:, :, :2], k):  # the first keys of a cache do not lie in one piece
            values = v[:, :, : cached.shape[2]]
            out = compute(q, cached, values)
            expected = softmax_attention(q.float(), cached.float(), values.float())
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.02)
            exact = attend(q, cached, values, seen[:, : cached.shape[2]])  # a mask goes the other way
            torch.testing.assert_close(out, exact, rtol=0, atol=0.02)


def test_gradients_of_two_products_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_HALF_WITHOUT_TILES", True)
    found, wanted = ([x.bfloat16().requires_grad_() for x in qkv(3, 5)] for _ in range(2))
    for (q, k, v), compute in ((found, attend), (wanted, softmax_attention)):
        compute(q, k, v).square().sum().backward()
    for mine, other in zip(found, wanted, strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0.05)


# --- choosing one -----------------------------------------------------------------------------------------


def test_every_layer_of_a_model_is_switched(flash: Flash) -> None:
    model, other = tiny_mar(), tiny_mar()
    use_attention(model, "flash")
    backends = [m.backend for m in model.modules() if isinstance(m, AttentionLayer)]
    assert backends == ["flash", "flash"]  # encoder and decoder
    assert all(m.backend == "sdpa" for m in other.modules() if isinstance(m, AttentionLayer))


def test_a_model_draws_the_same_with_every_back_end(flash_on_cpu: Flash) -> None:
    drawn = {}
    for backend in ("sdpa", "flash", "auto"):
        model = tiny_mar()
        use_attention(model, backend)
        labels = torch.tensor([0, 1])
        drawn[backend] = draw(model, labels, guidance=Guidance(2.0), num_stages=2)
    assert len(flash_on_cpu.asked) == 2 * 2 * 2  # back ends, stages, layers
    torch.testing.assert_close(drawn["flash"], drawn["sdpa"], rtol=0, atol=1e-5)
    assert torch.equal(drawn["auto"], drawn["flash"])


def test_an_unknown_back_end_is_refused_with_those_that_there_are() -> None:
    name: Any = "flash2"
    with pytest.raises(ValueError, match="attention must be one of sdpa, flash, auto, got 'flash2'"):
        use_attention(tiny_mar(), name)


@pytest.mark.usefixtures("no_flash")
def test_flash_that_is_not_installed_comes_with_the_line_that_installs_it() -> None:
    model = tiny_mar()
    with pytest.raises(ValueError, match="pip install flash-attn"):
        use_attention(model, "flash")
    use_attention(model, "auto")  # which does without


# --- the cache --------------------------------------------------------------------------------------------


def keys_of(length: int, value: float, rows: int = B) -> Tensor:
    return torch.full((rows, h, length, d), value)


def test_a_cache_returns_everything_up_to_what_was_written() -> None:
    cache = KVCache.empty(B, h, 6, d, like=torch.empty(0))
    cache.write(0, keys_of(2, 1.0), keys_of(2, -1.0))
    keys, values = cache.write(2, keys_of(3, 2.0), keys_of(3, -2.0))
    assert keys.shape == values.shape == (B, h, 5, d)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 2, 2, 2]
    assert torch.equal(values, -keys)


def test_a_cache_hands_out_views_of_what_was_allocated_once() -> None:
    cache = KVCache.empty(B, h, 6, d, like=torch.empty(0, dtype=torch.float64))
    before = cache.keys.data_ptr(), cache.values.data_ptr()
    for start in range(6):
        keys, values = cache.write(start, *(torch.randn(B, h, 1, d).double() for _ in range(2)))
        assert (keys.data_ptr(), values.data_ptr()) == before
        assert keys.dtype == torch.float64 and keys.stride()[2:] == (d, 1)
    assert keys.is_contiguous() and values.is_contiguous()


def test_what_is_written_twice_is_written_once() -> None:
    cache = KVCache.empty(B, h, 4, d, like=torch.empty(0))
    cache.write(0, keys_of(2, 1.0), keys_of(2, 1.0))
    first = [x.clone() for x in cache.write(2, keys_of(1, 2.0), keys_of(1, 2.0))]
    cache.write(2, keys_of(2, 9.0), keys_of(2, 9.0))  # a proposal that was not accepted
    again = cache.write(2, keys_of(1, 2.0), keys_of(1, 2.0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_part_of_the_rows_can_be_used() -> None:
    cache = KVCache.empty(2 * B, h, 4, d, like=torch.empty(0))
    cache.write(0, keys_of(1, 1.0, 2 * B), keys_of(1, 1.0, 2 * B))
    keys, values = cache.write(1, keys_of(1, 2.0), keys_of(1, 2.0))  # conditional rows alone
    assert keys.shape == values.shape == (B, h, 2, d)
    assert keys[:, 0, :, 0].tolist() == [[1, 2]] * B


@pytest.mark.parametrize("pieces", [(5,), (1, 1, 1, 1, 1), (2, 3), (1, 3, 1)], ids=str)
def test_a_causal_layer_reads_a_sequence_in_any_pieces(pieces: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = Block(h * d, h, causal=True).eval(), torch.randn(B, 5, h * d)
    cache, out, start = KVCache.empty(B, h, 5, d, like=x), [], 0
    with torch.inference_mode():
        for piece in x.split(pieces, dim=1):
            out.append(layer(piece, Past(cache, start)))
            start += piece.shape[1]
        torch.testing.assert_close(torch.cat(out, dim=1), layer(x))
