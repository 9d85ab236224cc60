"""The contract of an autoregressive model with a diffusion head.

Letters: `B` batch, `C H W` latents, `N` tokens, `D` token channels, `K` stages, `n` tokens of a stage,
`Z` width of the head's conditioning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disa_framework.guidance import Guidance
from disa_framework.noise import NoiseSource
from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Denoiser


@dataclass(frozen=True)
class Proposal:
    """What the backbone says about one stage.

    Attributes:
        shape: `(n, D)`, the tokens of one sample that the stage draws.
        denoise: the head, ready for these tokens; guidance is applied within.
        places: whatever `accept` needs to put the tokens in their places.
    """

    shape: tuple[int, int]
    denoise: Denoiser
    places: Any = None


class ARDiffusionModel(nn.Module, ABC):
    """Subclass, set the attributes, and implement the abstract methods; everything else works on it.

    Attributes:
        process: how the head was trained to corrupt tokens.
        latent_shape: `(C, H, W)` of what `finish` returns.
        num_classes: labels are 0 … num_classes - 1.
        max_stages: the most stages an image can be drawn in.
    """

    process: Process
    latent_shape: tuple[int, int, int]
    num_classes: int
    max_stages: int

    @abstractmethod
    def begin(
        self, condition: Tensor | None, num_stages: int, guidance: Guidance, noise: NoiseSource, batch_size: int
    ) -> Any:
        """The state before the first stage, whatever the model keeps between stages.

        Args:
            condition: class labels `[B]`, or `None` for unconditional images.
            num_stages: `K`, at most `max_stages`.
            guidance: scale and interval of classifier-free guidance.
            noise: source of the orders, if the model draws any.
            batch_size: `B`.
        """

    @abstractmethod
    def propose(self, state: Any, stage: int) -> Proposal:
        """Runs the backbone: which tokens stage `stage` draws, and their head."""

    @abstractmethod
    def accept(self, state: Any, proposal: Proposal, tokens: Tensor) -> Any:
        """The state with the drawn tokens `[B, n, D]` in place."""

    @abstractmethod
    def finish(self, state: Any) -> Tensor:
        """The latents `[B, C, H, W]`."""

    def loss(
        self, latents: Tensor, condition: Tensor | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training loss, a scalar.

        Args:
            latents: `[B, C, H, W]`.
            condition: class labels `[B]`.
            generator: randomness of the loss; `None` is the global one, as usual in training.
        """
        raise NotImplementedError(f"{type(self).__name__} has no weights to train")

    @property
    def head(self) -> nn.Module | None:
        """The denoiser's module where it is apart from the backbone."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, in which the head is evaluated."""
        return next((p.dtype for p in self.parameters()), torch.float32)
