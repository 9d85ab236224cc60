"""What is drawn: every family, tiny, with weights that are nowhere zero; and published sizes with random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks import reference
from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.models import (
    EMIGM,
    MAR,
    NOVA,
    XAR,
    ARDiffusionModel,
    CausalAR,
    FlowAR,
    SphereAR,
    flowar_large,
    mar_base,
    xar_base,
)
from disa_framework.nn.text import Words
from disa_framework.sampling.condition import Condition
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Halves,
    Heun,
    LogSNR,
    RectifiedFlow,
    SinglestepDPMSolverPP,
    Solver,
    Uniform,
    UniPC,
)
from disa_framework.toy.mixture import MixtureAR

M = TypeVar("M", bound=nn.Module)

COUNT = 3
"""Samples of a tiny model."""
_WORDS = ("a", "red", "blue", "cat", "dog", "on", "the", "moon")

SOLVERS: tuple[Solver, ...] = (
    DDPM(), DDIM(), DDIM(Uniform()), DPMSolver(), DPMSolverPP(order=3), DPMSolverPP(grid=LogSNR()),
    UniPC(), SinglestepDPMSolverPP(), Euler(), Heun(), EulerMaruyama(),
)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A family as it is checked.

    Attributes:
        make: the model, on the CPU, the same one every time.
        sampling: how samples are drawn, but for the solver.
        condition: of `COUNT` samples.
    """

    make: Callable[[], ARDiffusionModel]
    sampling: SamplingConfig
    condition: Condition


def families() -> dict[str, Tiny]:
    """All that there are, by name."""
    labels, prompts = torch.tensor([0, 2, 1]), ["a red cat", "the moon", "a blue dog on the moon"]
    masked = SamplingConfig(Linear(5, 3), DDPM(), 4, Guidance(2.0, interval=(0.1, 0.9)))
    lazy = replace(masked, cache=Lazy(refresh=2, share=0.2, start=1))
    flow = replace(masked, solver=Euler(), num_stages=None)
    return {
        "MAR": Tiny(tiny_mar, masked, labels),
        "MAR, lazy": Tiny(tiny_mar, lazy, labels),
        "eMIGM": Tiny(_tiny_emigm, masked, labels),
        "FlowAR": Tiny(lambda: tiny_flowar(cross_attention=False), flow, labels),
        "FlowAR with cross-attention": Tiny(tiny_flowar, flow, labels),
        "xAR": Tiny(tiny_xar, flow, labels),
        "CausalAR": Tiny(_tiny_causal, masked, labels),
        "SphereAR": Tiny(_tiny_sphere, flow, labels),
        "mixture": Tiny(lambda: MixtureAR(6, 4, 3), masked, labels),
        "mixture of flows": Tiny(lambda: MixtureAR(6, 4, 3, process=RectifiedFlow()), flow, labels),
        "Harmon": Tiny(_tiny_harmon, masked, prompts),
        "Harmon, lazy": Tiny(_tiny_harmon, lazy, prompts),
        "NOVA": Tiny(_tiny_nova, replace(flow, num_stages=4), prompts),
    }


def fitting(model: ARDiffusionModel) -> list[Solver]:
    """The solvers that fit a model's process."""

    def fits(solver: Solver) -> bool:
        try:
            solver.table(model.process, 5)
        except ValueError:
            return False
        return True

    return [solver for solver in SOLVERS if fits(solver)]


def tiny_mar(latent_size: int = 4, channels: int = 1, decoder_width: int = 16) -> MAR:
    """Of 16 tokens."""
    return normal(
        MAR(
            latent_size, channels, 1, 3, encoder_width=16, encoder_depth=2, encoder_heads=2,
            decoder_width=decoder_width, decoder_depth=2, decoder_heads=2, head_depth=1, head_width=16, buffer_size=2,
        )
    )  # fmt: skip


def tiny_flowar(cross_attention: bool = True) -> FlowAR:
    """Of three scales."""
    return normal(
        FlowAR(
            4, 2, 3, (1, 2, 4), width=16, encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=4,
            head_depth=1, head_width=64, cross_attention=cross_attention,
        )
    )  # fmt: skip


def tiny_xar() -> XAR:
    """Of four cells."""
    return normal(XAR(4, 2, 3, 2, width=16, encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=4))


def _tiny_emigm() -> EMIGM:
    return normal(
        EMIGM(
            4, 1, 1, 3, encoder_width=16, encoder_depth=2, encoder_heads=2, decoder_width=16, decoder_depth=2,
            decoder_heads=2, head_depth=1, head_width=16, buffer_size=2,
        )
    )  # fmt: skip


def _tiny_causal() -> CausalAR:
    return normal(CausalAR(2, 2, 1, 3, width=16, depth=2, heads=2, head_depth=1, head_width=16))


def _tiny_sphere() -> SphereAR:
    return normal(
        SphereAR(3, 4, 3, class_tokens=2, width=16, depth=2, heads=2, head_depth=4, head_width=16, modulations=2)
    )


def _tiny_nova() -> NOVA:
    return normal(
        NOVA(
            8, 2, width=16, heads=2, text_depth=2, image_depth=3, head_depth=2, head_width=24, text_width=9,
            text_length=6, text_encoder=Words(_WORDS),
        )
    )  # fmt: skip


def _tiny_harmon() -> ARDiffusionModel:
    from disa_framework.models.harmon import Harmon, Qwen2, Vocabulary

    words = Vocabulary(_WORDS)
    llm = Qwen2(24, 32, 2, 4, 2, len(words.ids))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return normal(Harmon(tiny_mar(channels=2, decoder_width=24), llm, words))


def normal(model: M) -> M:
    """The model, for drawing, with normal weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def filled(model: ARDiffusionModel) -> ARDiffusionModel:
    """The model, for drawing, with what starts at zero filled, so that every weight shows in what is drawn."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()


@dataclass(frozen=True)
class Published:
    """A published system as it is timed.

    Attributes:
        make: the model; `tiny` is one of its family.
        sampling: as published, and annealed.
        constant: the schedule that it is compared with.
        plain: its plain sampler.
    """

    make: Callable[[], ARDiffusionModel]
    tiny: Callable[[], ARDiffusionModel]
    sampling: SamplingConfig
    constant: Constant
    plain: Callable[..., Tensor]

    def dry(self) -> Published:
        """A tiny model in few stages and steps."""
        few = replace(self.sampling, schedule=Linear(4, 2), num_stages=self.sampling.num_stages and 4)
        return replace(self, make=self.tiny, sampling=few, constant=Constant(4))


PUBLISHED = {
    "mar": Published(
        mar_base, tiny_mar, SamplingConfig(Linear(50, 5), DDPM(), 64, Guidance(3.0)),
        Constant(50), reference.mar,
    ),
    "flowar": Published(
        flowar_large, tiny_flowar,
        SamplingConfig(Linear(25, 15), Euler(Halves()), guidance=Guidance(3.0, interval=(0.0, 0.9))), Constant(25),
        reference.flowar,
    ),
    "xar": Published(
        xar_base, tiny_xar, SamplingConfig(Linear(50, 15), EulerMaruyama(), guidance=Guidance(3.0)), Constant(50),
        reference.xar,
    ),
}  # fmt: skip
