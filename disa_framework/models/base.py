"""The contract of an autoregressive model with a diffusion head.

Letters: `B` batch, `N` tokens, `D` token channels, `K` stages, `n` tokens of a stage,
`Z` width of the head's conditioning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from itertools import accumulate
from typing import Any, Generic, Self

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from disa_framework.runtime.devices import bring, constant
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.noise import NoiseSource, PhiloxNoise
from disa_framework.sampling.order import RandomOrder, TokenOrder
from disa_framework.sampling.stage_sizes import CosineSizes, StageSizes
from disa_framework.solvers.process import Process
from disa_framework.solvers.table import Denoiser

State = TypeVar("State", default=Any)
"""Whatever a model keeps between stages. It is not written into: a state can be gone on with twice."""


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


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of a masked model are, and how they are drawn if a sampling config says nothing about it.

    Attributes:
        height, width: rows and columns of tokens; a sequence has one row.
        order, sizes: the model's own.
    """

    height: int
    width: int
    order: TokenOrder
    sizes: StageSizes

    @classmethod
    def published(cls, height: int, width: int) -> TokenLayout:
        """With order and sizes of MAR (arXiv 2406.11838)."""
        return cls(height, width, RandomOrder(), CosineSizes())

    def places(self, sampling: SamplingConfig, noise: NoiseSource, device: torch.device) -> Tensor:
        """Of the tokens in the order of a config, `[B, N]` or `[1, N]` on a device, see `TokenOrder.draw`."""
        order = self.order if sampling.order is None else sampling.order
        places = order.draw(noise, self.height, self.width)
        if len(places) == 1 and places.device.type == "cpu":
            return constant((*places[0].tolist(),), places.dtype, device)[None]
        return bring(places, device)

    def ends(self, sampling: SamplingConfig) -> tuple[int, ...]:
        """How many tokens are drawn after each stage of a settled config."""
        sizes = self.sizes if sampling.stage_sizes is None else sampling.stage_sizes
        return tuple(accumulate(sizes.sizes(self.height * self.width, sampling.stages)))


@dataclass(frozen=True)
class Losses:
    """The training loss of a batch, and from where in its samples it comes.

    Attributes:
        total: what training makes small, a scalar.
        parts: `[P]` mean losses of parts of the samples, those that are drawn first in front; none if none are told.
        drawn: what is drawn before each part, as a share: of the stages, or of the tokens if the model has a `layout`.
    """

    total: Tensor
    parts: Tensor | None = None
    drawn: tuple[float, ...] = ()

    @classmethod
    def of_stages(cls, total: Tensor, parts: Tensor) -> Losses:
        """Where every stage is trained on: `parts [K]`."""
        return cls(total, parts.detach(), tuple(k / len(parts) for k in range(len(parts))))


class ARDiffusionModel(nn.Module, ABC, Generic[State]):
    """Subclass, set the attributes, and implement the abstract methods; everything else works on it.

    Attributes:
        process: how the head was trained to corrupt tokens.
        latent_shape: of what `finish` returns for a sample: `(C, H, W)` of an image, `(length, D)` of a sequence.
        num_classes: labels are 0 … num_classes - 1; 0 for a model that is asked for something else.
        min_stages, max_stages: in how many stages a sample can be drawn.
        caches_features: whether it heeds the `cache` of a sampling config.
    """

    process: Process
    latent_shape: tuple[int, ...]
    num_classes: int = 0
    min_stages: int = 1
    max_stages: int
    caches_features: bool = False
    _made_with: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        told = cls.losses is not ARDiffusionModel.losses and "losses" not in vars(cls)
        if told and "loss" in vars(cls):
            raise TypeError(f"{cls.__name__} overrides loss, but training asks its family for losses: override that")

    def __new__(cls, *args: Any, **options: Any) -> Self:
        model = super().__new__(cls)
        with suppress(TypeError):  # which __init__ raises, too; a copy is made without arguments, and gets those it had
            made = signature(cls.__init__).bind(model, *args, **options)
            made.apply_defaults()
            object.__setattr__(model, "_made_with", dict([*made.arguments.items()][1:]))
        return model

    @property
    def made_with(self) -> dict[str, Any]:
        """The arguments of its constructor, by name."""
        return self._made_with

    @abstractmethod
    def begin(self, condition: Any, sampling: SamplingConfig, noise: NoiseSource) -> State:
        """The state before the first stage.

        Args:
            condition: what the samples are asked to be, on the model's device; `None` for unconditional ones.
            sampling: settled, so that it has a number of stages.
            noise: source of the orders, if the model draws any; it says how many samples there are.
        """

    @abstractmethod
    def propose(self, state: State, stage: int) -> Proposal:
        """Runs the backbone: which tokens stage `stage` draws, and their head."""

    @abstractmethod
    def accept(self, state: State, proposal: Proposal, tokens: Tensor) -> State:
        """The state with the drawn tokens `[B, n, D]` in place."""

    def finished(self, state: State) -> Tensor:
        """Which samples have come to their end, bool `[B]`; none by default.

        When all have, no further stage is drawn. What is drawn of a sample after its end must not change its latents.
        On a GPU the host waits for this once a stage, where a model overrides it.
        """
        return torch.zeros(1, dtype=torch.bool)

    @abstractmethod
    def finish(self, state: State) -> Tensor:
        """The latents `[B, *latent_shape]`, after any stage; zero is where nothing is drawn yet, or behind an early
        end."""

    def loss(self, latents: Tensor, condition: Any, generator: torch.Generator | None = None) -> Tensor:
        """The training loss, a scalar. A model that is trained overrides this, or `losses`.

        Args:
            latents: `[B, *latent_shape]`.
            condition: what they are, as `begin` takes it.
            generator: randomness of the loss; `None` is the global one, as usual in training.
        """
        return self.losses(latents, condition, generator).total

    def losses(self, latents: Tensor, condition: Any, generator: torch.Generator | None = None) -> Losses:
        """The same, and from which stages it comes, which training shows; by default that is not known."""
        if type(self).loss is ARDiffusionModel.loss:
            raise NotImplementedError(f"{type(self).__name__} has no weights to train")
        return Losses(self.loss(latents, condition, generator))

    def check_condition(self, condition: Condition) -> None:
        """Raises a ValueError that says what would fit, if the model cannot draw this.

        Here for class labels `[B]`; a model that is asked for something else overrides it.

        Args:
            condition: labels are looked at, so they are best on the CPU, where nothing has to be waited for.
        """
        name = type(self).__name__
        if not self.num_classes:
            raise ValueError(f"{name} cannot be asked for anything: leave the condition out")
        if not isinstance(condition, Tensor):
            raise ValueError(f"{name} draws classes: give labels, not {type(condition).__name__}")
        if condition.ndim != 1 or condition.is_floating_point():
            raise ValueError(f"labels must be integers [B], got {condition.dtype} {list(condition.shape)}")
        outside = condition[(condition < 0) | (condition >= self.num_classes)]
        if len(outside):
            raise ValueError(f"labels must lie in 0 … {self.num_classes - 1} for this model, got {outside[0].item()}")

    def settle(self, sampling: SamplingConfig) -> SamplingConfig:
        """The config as this model draws with it, which has a number of stages.

        Raises:
            ValueError: that says what would fit, if the model cannot draw with it.
        """
        known = (sampling, sampling.stage_sizes, sampling.solver)
        given = [part.num_stages for part in known if part is not None and part.num_stages is not None]
        stages = given[0] if given else self.max_stages
        low, high = self.min_stages, self.max_stages
        if not low <= stages <= high:
            allowed = f"lie in {low} … {high}" if low < high else f"be {high}"
            raise ValueError(
                f"num_stages must {allowed} for this model, got {stages}: every stage draws at least one token"
            )
        if sampling.cache is not None and not self.caches_features:
            raise ValueError(f"{type(self).__name__} caches no features, as MAR and Harmon do: leave the cache out")
        settled = replace(sampling, num_stages=stages)
        settled.evaluations(self.process)
        self._check_layout(settled)
        return settled

    def _check_layout(self, sampling: SamplingConfig) -> None:
        given = [name for name in ("order", "stage_sizes") if getattr(sampling, name) is not None]
        if given and self.layout is None:
            raise ValueError(f"{type(self).__name__} draws its tokens in one way alone: leave {given[0]} out")
        if given and self.layout is not None:
            self.layout.places(sampling, PhiloxNoise(0, torch.arange(1)), torch.device("cpu"))
            self.layout.ends(sampling)

    @property
    def layout(self) -> TokenLayout | None:
        """The tokens of a model that heeds order and stage sizes of a sampling config; None of another one."""
        return None

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


class Delegating(ARDiffusionModel[Any]):
    """A model that is another one in everything; override what is to be watched or changed.

    Args:
        model: the other one.
    """

    def __init__(self, model: ARDiffusionModel) -> None:
        super().__init__()
        self.watched = model
        self.process, self.latent_shape, self.num_classes = model.process, model.latent_shape, model.num_classes
        self.min_stages, self.max_stages = model.min_stages, model.max_stages
        self.caches_features = model.caches_features

    def begin(self, condition: Any, sampling: SamplingConfig, noise: NoiseSource) -> Any:
        return self.watched.begin(condition, sampling, noise)

    def propose(self, state: Any, stage: int) -> Proposal:
        return self.watched.propose(state, stage)

    def accept(self, state: Any, proposal: Proposal, tokens: Tensor) -> Any:
        return self.watched.accept(state, proposal, tokens)

    def finished(self, state: Any) -> Tensor:
        return self.watched.finished(state)

    def finish(self, state: Any) -> Tensor:
        return self.watched.finish(state)

    def check_condition(self, condition: Condition) -> None:
        self.watched.check_condition(condition)

    @property
    def layout(self) -> TokenLayout | None:
        return self.watched.layout

    @property
    def head(self) -> nn.Module | None:
        return self.watched.head

    @property
    def device(self) -> torch.device:
        return self.watched.device

    @property
    def dtype(self) -> torch.dtype:
        return self.watched.dtype
