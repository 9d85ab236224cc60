"""The contract of an autoregressive model with a diffusion head.

Letters: `B` batch, `C H W` latents, `N` tokens, `D` token channels, `K` stages, `n` tokens of a stage,
`Z` width of the head's conditioning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disa_framework.guidance import Guidance
from disa_framework.models.graphs import Recorded
from disa_framework.noise import NoiseSource
from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Denoiser

Condition = Tensor | Sequence[str]
"""What is asked for: class labels `[B]` int64, or `B` prompts. A model takes one of them, and says which."""


@dataclass(frozen=True)
class Proposal:
    """What the backbone says about one stage.

    Attributes:
        shape: `(n, D)`, the tokens of one sample that the stage draws.
        denoise: the head, ready for these tokens; guidance is applied within.
        places: whatever `accept` needs to put the tokens in their places.
        z: `[G B, n, Z]`, what the head is told of each token, conditional rows first; `None` where head and backbone
            are one network. Generation does not read it, diagnostics do.
    """

    shape: tuple[int, int]
    denoise: Denoiser
    places: Any = None
    z: Tensor | None = None


class ARDiffusionModel(Recorded, ABC):
    """Subclass, set the attributes, and implement the abstract methods; everything else works on it.

    Attributes:
        process: how the head was trained to corrupt tokens.
        latent_shape: `(C, H, W)` of what `finish` returns.
        num_classes: labels are 0 … num_classes - 1; 0 for a model that takes prompts.
        min_stages, max_stages: in how many stages an image can be drawn.
    """

    process: Process
    latent_shape: tuple[int, int, int]
    num_classes: int
    min_stages: int = 1
    max_stages: int

    @abstractmethod
    def begin(
        self, condition: Any, num_stages: int, guidance: Guidance, noise: NoiseSource, batch_size: int
    ) -> Any:
        """The state before the first stage, whatever the model keeps between stages.

        Args:
            condition: class labels `[B]` or prompts; `None` for unconditional images.
            num_stages: `K`, from `min_stages` to `max_stages`.
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
        self, latents: Tensor, condition: Any, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training loss, a scalar.

        Args:
            latents: `[B, C, H, W]`.
            condition: class labels `[B]` or prompts.
            generator: randomness of the loss; `None` is the global one, as usual in training.
        """
        raise NotImplementedError(f"{type(self).__name__} has no weights to train")

    def check_condition(self, condition: Condition) -> None:
        """Raises a ValueError that says what would fit, if the model cannot draw this.

        Args:
            condition: labels are looked at, so they are best on the CPU, where nothing has to be waited for.
        """
        if not isinstance(condition, Tensor):
            raise ValueError(f"{type(self).__name__} draws classes: give labels, not prompts")
        if condition.ndim != 1 or condition.is_floating_point():
            raise ValueError(f"labels must be integers [B], got {condition.dtype} {list(condition.shape)}")
        outside = condition[(condition < 0) | (condition >= self.num_classes)]
        if len(outside):
            raise ValueError(
                f"labels must lie in 0 … {self.num_classes - 1} for this model, got {outside[0].item()}"
            )

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


class Delegating(ARDiffusionModel):
    """A model that is another one in everything; override what is to be watched or changed.

    Args:
        model: the other one.
    """

    def __init__(self, model: ARDiffusionModel) -> None:
        super().__init__()
        self.watched = model
        self.process, self.latent_shape, self.num_classes = model.process, model.latent_shape, model.num_classes
        self.min_stages, self.max_stages = model.min_stages, model.max_stages

    def begin(
        self, condition: Any, num_stages: int, guidance: Guidance, noise: NoiseSource, batch_size: int
    ) -> Any:
        return self.watched.begin(condition, num_stages, guidance, noise, batch_size)

    def propose(self, state: Any, stage: int) -> Proposal:
        return self.watched.propose(state, stage)

    def accept(self, state: Any, proposal: Proposal, tokens: Tensor) -> Any:
        return self.watched.accept(state, proposal, tokens)

    def finish(self, state: Any) -> Tensor:
        return self.watched.finish(state)

    def check_condition(self, condition: Condition) -> None:
        self.watched.check_condition(condition)

    @property
    def cache(self) -> Any:
        return self.watched.cache  # no attribute of a model that has none, as of the model itself

    @cache.setter
    def cache(self, cache: Any) -> None:
        self.watched.cache = cache

    @property
    def head(self) -> nn.Module | None:
        return self.watched.head

    @property
    def device(self) -> torch.device:
        return self.watched.device

    @property
    def dtype(self) -> torch.dtype:
        return self.watched.dtype
