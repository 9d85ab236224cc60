"""The LightningModule over a model and the way to draw with it: training, validation, prediction."""

from __future__ import annotations

import copy
import math
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from disa_framework.data.position import position, settle
from disa_framework.data.requests import Request
from disa_framework.hub import load_model, push_to_hub, save_pretrained, shared_sampling
from disa_framework.models.base import ARDiffusionModel, Losses
from disa_framework.nn.attention import Backend, use_attention
from disa_framework.resuming import RunIdentity, identity
from disa_framework.runtime.compiling import compile_regions, missing_for_compilation
from disa_framework.runtime.products import use_fast_products
from disa_framework.sampling.condition import Condition
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.generation import Observer, generate
from disa_framework.sampling.noise import check_seed
from disa_framework.sampling.replaying import Replaying, replayable
from disa_framework.tokenizers import Identity, Tokenizer

_VALIDATION_SEED = 0
_THIRDS = ("early", "middle", "late")


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
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf or self.warmup_steps < 0:
            raise ValueError(f"need a finite lr > 0, weight_decay >= 0 and warmup_steps >= 0, got {self}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
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
    """Trains an AR model with a diffusion head, and draws with it.

    Args:
        model: the AR model.
        sampling: how samples are drawn.
        tokenizer: between images and latents; pixels are latents by default.
        compile: by PyTorch's compiler, which takes a minute or two at the start; left out, with a warning that says
            why, where there is no compiler.
        graphs: on a GPU, draws batches from the third of one kind on by a CUDA graph, which holds the memory of one.
        attention: what computes it: PyTorch, the package flash-attn, or flash-attn wherever it can be used.
        optimization: of training.
        seed: of the samples that are drawn.
    """

    def __init__(
        self,
        model: ARDiffusionModel,
        sampling: SamplingConfig = SamplingConfig(),
        tokenizer: Tokenizer | None = None,
        compile: bool = False,
        graphs: bool = False,
        attention: Backend = "sdpa",
        optimization: Optimization = Optimization(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_seed(seed)
        use_attention(model, attention)
        use_fast_products(model)
        if compile and (lack := missing_for_compilation()):
            warnings.warn(f"drawing without compilation: {lack}", stacklevel=2)
        elif compile:
            compile_regions(model)
        if compile and sampling.cache:
            warnings.warn("with a cache, only the first block of each half is compiled", stacklevel=2)
        self.model = model
        self.sampling = model.settle(sampling)
        self.tokenizer = tokenizer or Identity()
        self.tokenizer.check(model.latent_shape)
        self.optimization = optimization
        self.seed = seed
        self.runtime = {"compile": compile, "graphs": graphs, "attention": attention}  # how long drawing takes
        self.replaying = Replaying() if graphs else None

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """A shared model that draws as it was shared.

        Args:
            source: what `load_model` takes: a folder of `save_pretrained`, `hf:user/name`, a file.
            options: of the module. Without `sampling` it is the one that was shared with the model, if any.

        Raises:
            FileNotFoundError, OSError, ValueError: as of `load_model`, or the model cannot draw with the config.
        """
        model, shared = load_model(source), shared_sampling(source)
        if shared.is_file():
            options = {"sampling": SamplingConfig.load(shared), **options}
        return cls(model, **options)

    def save_pretrained(self, folder: str | Path, about: str = "") -> Path:
        """Writes the model and how it draws into a folder, see `disa_framework.hub.save_pretrained`."""
        return save_pretrained(self.model, folder, self.sampling, about=about)

    def push_to_hub(self, name: str, about: str = "", private: bool = False, revision: str | None = None) -> str:
        """Writes the same into a repository of Hugging Face, see `disa_framework.hub.push_to_hub`."""
        return push_to_hub(self.model, name, self.sampling, about=about, private=private, revision=revision)

    def drawing(self, sampling: SamplingConfig | None = None, seed: int | None = None) -> ARDiffusionModule:
        """A module that draws with the same model in another way.

        Raises:
            ValueError: if the model cannot.
        """
        other = copy.copy(self)
        other.sampling = self.sampling if sampling is None else self.model.settle(sampling)
        other.seed = self.seed if seed is None else seed
        other.replaying = self.replaying and Replaying()
        return other

    def evaluations(self) -> int:
        """Head evaluations of one sample."""
        return self.sampling.evaluations(self.model.process)

    def identity(self, condition: Condition | None, batch_size: int, **more: Any) -> RunIdentity:
        """What decides the samples of a run, see `disa_framework.resuming`."""
        return identity(self.model, self.tokenizer, condition, self.sampling, self.seed, batch_size, **more)

    def draw(self, condition: Condition | None, indices: Tensor, observers: Sequence[Observer] = ()) -> Tensor:
        """What the tokenizer makes of the samples `indices [B]` with this condition: images in [-1, 1]."""
        asked: dict[str, Any] = {"seed": self.seed, "indices": indices, "observers": observers}
        if self.replaying and replayable(self.model, condition, self.sampling, observers):
            latents = self.replaying.generate(self.model, condition, self.sampling, **asked)
        else:
            latents = generate(self.model, condition, self.sampling, batch_size=len(indices), **asked)
        return self.tokenizer.decode(latents)

    def on_fit_start(self) -> None:
        check_classes(getattr(self.trainer, "datamodule", None), self.model)

    def on_train_batch_start(self, batch: tuple[Tensor, Condition], batch_idx: int) -> None:
        # Noise, masks and dropout of a batch are a function of its place, wherever training was stopped and gone on.
        place = (self.seed % 2**64, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint["loops"]["fit_loop"], position(self.trainer), self.global_step)

    def training_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> Tensor:
        losses = self._losses(batch)
        self.log("train_loss", losses.total, prog_bar=True)
        # Means of an epoch, which gather on the device, and of the first process: each may have others of the stages.
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "rank_zero_only": True}
        for third, loss in thirds(losses, self.model, self.sampling):
            self.log(f"loss/{third}", loss, batch_size=1, **how)
        return losses.total

    def validation_step(self, batch: tuple[Tensor, Condition], batch_idx: int) -> None:
        # The same times, masks and noise at every validation, so that losses can be compared.
        loss = self._losses(batch, torch.Generator().manual_seed(_VALIDATION_SEED + batch_idx)).total
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch[0]), sync_dist=True)

    def _losses(self, batch: tuple[Tensor, Condition], generator: torch.Generator | None = None) -> Losses:
        images, condition = batch
        if self.model.num_classes and not isinstance(condition, Tensor):
            self.model.check_condition(condition)  # which would wait for labels on a device
        latents = self.tokenizer.encode(images)
        if tuple(latents.shape[1:]) != tuple(self.model.latent_shape):
            raise ValueError(
                f"the model is for latents {list(self.model.latent_shape)} of a sample, those of the data are "
                f"{list(latents.shape[1:])}: choose the model's options by the data, or other data"
            )
        return self.model.losses(latents, condition, generator)

    def predict_step(self, batch: Request, batch_idx: int) -> Tensor:
        return self.draw(batch.condition, batch.indices)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        options = self.optimization
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options),
            lr=options.lr,
            betas=options.betas,
            # Lightning cannot clip the gradients of a fused optimizer under mixed precision.
            fused="mixed" not in str(self.trainer.precision),
        )
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = LambdaLR(optimizer, lambda step: options.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def thirds(losses: Losses, model: ARDiffusionModel, sampling: SamplingConfig) -> Iterator[tuple[str, Tensor]]:
    """Mean losses at the `early`, `middle` and `late` stages of a settled config, of those that a batch has."""
    drawn = losses.drawn
    if model.layout is not None:
        ends = model.layout.ends(sampling)
        drawn = tuple(bisect_right(ends, round(share * ends[-1])) / len(ends) for share in drawn)
    for place, name in enumerate(_THIRDS):
        first, last = (bisect_left(drawn, (place + i) / len(_THIRDS)) for i in (0, 1))
        if losses.parts is not None and first < last:
            yield name, losses.parts[first:last].mean()


def parameter_groups(model: ARDiffusionModel, options: Optimization) -> list[dict[str, Any]]:
    """Decayed and undecayed parameters: biases, norms and the head are not decayed."""
    head = {id(p) for p in model.head.parameters()} if isinstance(model.head, nn.Module) else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in head]
    others = [p for p in trained if p.ndim <= 1 or id(p) in head]
    return [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


def check_classes(data: Any, model: ARDiffusionModel) -> None:
    """Raises a ValueError if data, such as one of `disa_framework.data`, have labels that the model does not know."""
    found, known = getattr(data, "num_classes", None), model.num_classes
    if known and found is not None and found > known:
        names = getattr(getattr(data, "items", None), "classes", ())
        beyond = f" ({', '.join(names[known : known + 3])}, …)" if names else ""
        raise ValueError(
            f"the data have {found} classes, the model {known}: give it --model.num_classes {found}, or leave out the "
            f"others{beyond}"
        )
