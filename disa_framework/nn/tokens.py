"""Images as rows of tokens, and back; some of many tokens.

Letters: `B` batch, `C H W` latents, `p` side of a patch, `N` tokens, `n` some of them, `w` width,
`h` heads, `d` width of a head.
"""

from __future__ import annotations

from torch import Tensor


def patchify(latents: Tensor, patch: int) -> Tensor:
    """`[B, C, H, W] -> [B, (H/p)(W/p), C p p]`, raster order, channel-major inside a token."""
    B, C, H, W = latents.shape
    x = latents.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // patch) * (W // patch), C * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify` for latents of the given height and width."""
    B, _, D = tokens.shape
    x = tokens.reshape(B, height // patch, width // patch, D // patch**2, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, D // patch**2, height, width)


def gather_tokens(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of `x [B, N, w]` at `places [B, n]`: `[B, n, w]`; `x` may be `[1, N, w]`."""
    return x.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def gather_heads(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of `x [B, h, L, d]` at `places [B, n]`: `[B, h, n, d]`."""
    B, h, _, d = x.shape
    return x.gather(2, places[:, None, :, None].expand(B, h, -1, d))
