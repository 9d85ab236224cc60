"""The Inception Score (Salimans et al., arXiv 1606.03498).

Letters: `N` images, `C` classes.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

_SPLITS = 10  # as published


def inception_score(logits: Tensor) -> tuple[float, float]:
    """`exp E KL(p(y|x) || p(y))`: its mean and deviation over ten splits of the images in a fixed random order.

    Args:
        logits: unnormalized log-probabilities `[N, C]`; fewer than ten images have a split each.
    """
    N = len(logits)
    order = torch.randperm(N, generator=Generator().manual_seed(0)).to(logits.device)
    splits = min(_SPLITS, N)
    parts = logits.double()[order].log_softmax(dim=1).tensor_split([i * N // splits for i in range(1, splits)])
    scores = torch.stack([_divergence(part).exp() for part in parts])
    return scores.mean().item(), scores.std(correction=0).item()


def _divergence(log_p: Tensor) -> Tensor:
    """The mean Kullback-Leibler divergence of rows `[n, C]` from their mean."""
    log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean()
