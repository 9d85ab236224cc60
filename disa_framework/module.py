"""The LightningModule over a model, its schedule and its solver: training, validation, prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from disa_framework.callbacks import Overlap
from disa_framework.data.requests import Request
from disa_framework.devices import missing_cuda
from disa_framework.generation import Observer, generate
from disa_framework.guidance import Guidance
from disa_framework.models.attention import Backend, use_attention
from disa_framework.models.base import ARDiffusionModel, Condition
from disa_framework.models.compiling import compile_regions, missing_for_compilation
from disa_framework.models.graphs import use_graphs
from disa_framework.models.lazy import Lazy, check_cache
from disa_framework.models.tokenizers import Identity, Tokenizer
from disa_framework.schedules import Constant, StepSchedule
from disa_framework.solvers import DDPM, Solver

_VALIDATION_SEED = 0


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up; no weight decay for biases, norms and the diffusion head.

    Args:
        lr: learning rate after warm-up. MAR is published with 1e-4 for 256 images a step, in proportion.
        betas: of AdamW.
        weight_decay: of all other weights.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        decay: of the learning rate after warm-up: `none`, as published, or `cosine` to 0 at the end of training,
            which short runs gain from.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    warmup_steps: int = 0
    decay: Literal["none", "cosine"] = "none"

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup_steps < 0:
            raise ValueError(f"need lr > 0 and warmup_steps >= 0, got {self}")
        if self.decay not in ("none", "cosine"):
            raise ValueError(f"decay must be 'none' or 'cosine', got {self.decay!r}")

    def factor(self, step: int, total_steps: float) -> float:
        """What the learning rate is multiplied with at a step of `total_steps` (infinity if they have no end)."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.decay == "none":
            return warm
        past = max(0.0, step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))


class ARDiffusionModule(LightningModule):
    """Trains an AR model with a diffusion head, and draws images with it.

    Args:
        model: the AR model.
        schedule: diffusion steps of each AR stage; 50 at every stage by default.
        solver: turns noise into tokens; DDPM from timestep 950 by default.
        guidance: classifier-free guidance.
        num_stages: AR stages of an image; as many as the model can take by default.
        tokenizer: between images and latents; pixels are latents by default.
        cache: of features, which saves a masked model much of its backbone's time and changes what it draws a little;
            `Lazy` has options.
        compile: by PyTorch's compiler, which takes a minute or two at the start; left out, with a warning that says
            why, where there is no compiler.
        graphs: whether a GPU is given whole evaluations of the model at once, as CUDA graphs, which small batches gain
            from; left out, with a warning, where there is no such GPU.
        overlap: whether a GPU decodes a batch of images that are written while it draws the next, with the memory
            that both take; left out, with a warning, where there is no such GPU.
        attention: what computes it: PyTorch, the package flash-attn, or flash-attn wherever it can be used.
        optimization: of training.
        seed: of the images that are drawn.
    """

    def __init__(
        self,
        model: ARDiffusionModel,
        schedule: StepSchedule | None = None,
        solver: Solver | None = None,
        guidance: Guidance = Guidance(),
        num_stages: int | None = None,
        tokenizer: Tokenizer | None = None,
        cache: Lazy | None = None,
        compile: bool = False,
        graphs: bool = False,
        overlap: bool = False,
        attention: Backend = "sdpa",
        optimization: Optimization = Optimization(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        use_attention(model, attention)
        check_cache(model, cache)
        if compile and (lack := missing_for_compilation()):
            warnings.warn(f"drawing without compilation: {lack}", stacklevel=2)
        elif compile:
            compile_regions(model)
        if graphs and (lack := missing_cuda()):
            warnings.warn(f"drawing without CUDA graphs: {lack}", stacklevel=2)
            graphs = False
        use_graphs(model, graphs)
        if overlap and (lack := missing_cuda()):
            warnings.warn(f"drawing one batch after the other: {lack}", stacklevel=2)
            overlap = False
        if compile and cache:
            warnings.warn("with a cache, only the first block of each half is compiled", stacklevel=2)
        self.model = model
        self.schedule = schedule or Constant(50)
        self.solver = solver or DDPM()
        self.guidance = guidance
        self.num_stages = model.max_stages if num_stages is None else num_stages
        self.tokenizer = tokenizer or Identity()
        self.cache = cache
        self.optimization = optimization
        self.seed = seed
        self.observers: Sequence[Observer] = ()
        self._overlap = Overlap() if overlap else None

    def evaluations(self) -> int:
        """Head evaluations of one image.

        Raises:
            ValueError: if schedule, solver and model do not fit together.
        """
        budget = self.schedule.budget(self.num_stages)
        return sum(self.solver.evaluations(self.model.process, steps) for steps in budget)

    def draw(self, condition: Condition | None, indices: Tensor) -> Tensor:
        """Images `[B, c, h, w]` in [-1, 1] of the samples `indices [B]` with the given labels `[B]` or `B` prompts."""
        return self.tokenizer.decode(self._latents(condition, indices))

    def _latents(self, condition: Condition | None, indices: Tensor) -> Tensor:
        return generate(
            self.model,
            condition,
            schedule=self.schedule,
            solver=self.solver,
            num_stages=self.num_stages,
            guidance=self.guidance,
            cache=self.cache,
            seed=self.seed,
            indices=indices,
            batch_size=len(indices),
            observers=self.observers,
        )

    def training_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> None:
        # The same times, masks and noise at every validation, so that losses can be compared.
        loss = self._loss(batch, torch.Generator().manual_seed(_VALIDATION_SEED + batch_idx))
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch[0]), sync_dist=True)

    def _loss(self, batch: tuple[Tensor, Condition], generator: torch.Generator | None = None) -> Tensor:
        images, condition = batch
        if self.model.num_classes and not isinstance(condition, Tensor):
            self.model.check_condition(condition)  # which would wait for labels on a device
        return self.model.loss(self.tokenizer.encode(images), condition, generator)

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        latents = self._latents(batch.condition, batch.indices)
        if self._overlap:
            self._overlap.begin(latents)
        return self.tokenizer.decode(latents)

    def configure_callbacks(self) -> list[Callback]:
        return [self._overlap] if self._overlap else []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.optimization
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options),
            lr=options.lr,
            betas=options.betas,
            # Lightning cannot clip the gradients of a fused optimizer under a loss scaler.
            fused=self.trainer.precision != "16-mixed",
        )
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = LambdaLR(optimizer, lambda step: options.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def parameter_groups(model: ARDiffusionModel, options: Optimization) -> list[dict[str, Any]]:
    """Decayed and undecayed parameters: biases, norms and the head are not decayed."""
    head = {id(p) for p in model.head.parameters()} if isinstance(model.head, nn.Module) else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in head]
    others = [p for p in trained if p.ndim <= 1 or id(p) in head]
    return [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


