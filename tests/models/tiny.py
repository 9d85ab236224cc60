"""A MAR small enough to be trained in a test, and what tests do with any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from disa_framework import PhiloxNoise, SamplingConfig
from disa_framework.models import EMIGM, MAR, ARDiffusionModel
from disa_framework.sampling.condition import Condition, size
from disa_framework.schedules import Constant
from disa_framework.solvers import DDPM, Euler, VPCosine
from disa_framework.testing.models import draw_with

M = TypeVar("M", bound=nn.Module)

TINY: dict[str, Any] = {
    "latent_size": 4, "latent_channels": 1, "patch_size": 2, "num_classes": 3, "buffer_size": 2,
    "encoder_width": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_width": 16, "decoder_depth": 1,
    "decoder_heads": 2, "head_depth": 1, "head_width": 16, "attn_dropout": 0.0, "proj_dropout": 0.0,
}  # fmt: skip


def tiny_mar(std: float | None = 0.2, **options: Any) -> MAR:
    """In eval mode, with normal weights of this deviation; `None` leaves them as they are initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return filled(MAR(**{**TINY, **options}), std)


def tiny_emigm() -> EMIGM:
    """In eval mode, with normal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return filled(EMIGM(**TINY), 0.2)


def filled(model: M, std: float | None, generator: torch.Generator | None = None) -> M:
    """In eval mode, with normal weights of this deviation, none of them zero."""
    if std is not None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def draw(model: ARDiffusionModel, condition: Condition | None = None, **options: Any) -> Tensor:
    """Samples in three steps a stage, two if nothing is asked for; `options` are those of `generate`, or fields of the
    sampling config."""
    sampling = SamplingConfig(Constant(3), DDPM() if isinstance(model.process, VPCosine) else Euler())
    count = 2 if condition is None else size(condition)
    return draw_with(model, sampling, **{"condition": condition, "batch_size": count, **options})


def begin(model: ARDiffusionModel, condition: Condition | None = None, **options: Any) -> Any:
    """The state before the first stage, of two samples if nothing is asked for; `options` are fields of the sampling
    config."""
    count = 2 if condition is None else size(condition)
    solver = DDPM() if isinstance(model.process, VPCosine) else Euler()
    sampling = model.settle(SamplingConfig(**{"solver": solver, **options}))
    return model.begin(condition, sampling, PhiloxNoise(0, torch.arange(count)))


@contextmanager
def calls(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first input of every call of the module meanwhile."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    yield seen
    handle.remove()


def share_left(model: ARDiffusionModel, latents: Tensor, condition: Condition) -> float:
    """How much of the loss is left, of times and noise not trained on, after learning a batch by heart."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=5e-3)

    def loss(seed: int) -> Tensor:
        return model.loss(latents, condition, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def held_out() -> float:
        return sum(loss(1000 + seed).item() for seed in range(20))

    before = held_out()
    for seed in range(60):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    return held_out() / before


def tiny_digits(folder: Path, **more: Any) -> list[str]:
    """Options of a command for a tiny MAR of digits, whose weights are written into the folder."""
    options = {**TINY, "latent_size": 8, "num_classes": 10, **more}
    weights = folder / f"{'-'.join(('tiny', *more))}.safetensors"
    safetensors.torch.save_file(tiny_mar(**options).state_dict(), weights)
    model = [part for name, value in options.items() for part in (f"--model.{name}", str(value))]
    return [*model, "--ckpt_path", str(weights)]
