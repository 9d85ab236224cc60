"""How many steps each place of a phrase needs: the head of VibeVoice alone, given hidden states that were recorded.

Letters: `B` phrases, `P` recorded ones, `K` tokens, `D` token channels, `Z` width of the hidden states.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from disa_framework.integrations.transformers.scheduler import PROCESS
from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.sampling.config import SamplingConfig
from disa_framework.sampling.guidance import Guidance, guided
from disa_framework.sampling.noise import NoiseSource
from disa_framework.search.calibration import Calibration, Profile, measure_profile
from disa_framework.solvers import Nodes, Solver

VibeVoice = Any
"""transformers' `VibeVoiceForConditionalGeneration`."""


def record(model: VibeVoice, **arguments: Any) -> Tensor:
    """Calls `model.generate(**arguments)`, and returns the hidden states that the head was told of each token.

    Returns:
        `[K, 2, B, Z]`, conditional ones first: of all tokens before the number of phrases that draw changes. Those of
        several calls can be joined, `torch.cat((a[:K], b[:K]), dim=2)`.

    Raises:
        ValueError: if transformers is too old or not there, the model is another one, or nothing is spoken.
    """
    _check(model)
    seen: list[Tensor] = []

    def keep(head: nn.Module, args: Any, options: dict[str, Tensor]) -> None:
        # Every evaluation of a token is given the same tensor.
        if not seen or options["condition"] is not seen[-1]:
            seen.append(options["condition"])

    hook = model.model.diffusion_head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.generate(**arguments)
    finally:
        hook.remove()
    if not seen:
        raise ValueError("nothing was spoken: ask for more tokens")
    alike = takewhile(lambda states: len(states) == len(seen[0]), seen)
    return torch.stack([states.unflatten(0, (2, -1)) for states in alike])


def _check(model: VibeVoice) -> None:
    try:
        from transformers import VibeVoiceForConditionalGeneration
    except ImportError as error:
        raise ValueError("VibeVoice needs transformers 5.23 or newer: pip install 'disa-framework[speech]'") from error
    if not isinstance(model, VibeVoiceForConditionalGeneration):
        raise ValueError(f"expected a VibeVoiceForConditionalGeneration, got {type(model).__name__}")


class _Drawn(NamedTuple):
    phrases: Tensor  # [B], numbers of recorded ones
    sampling: SamplingConfig
    tokens: tuple[Tensor, ...] = ()  # [B, 1, D] each


class RecordedTokens(ARDiffusionModel[_Drawn]):
    """Draws tokens with VibeVoice's head alone, each given hidden states that were recorded.

    A label is the number of a recorded phrase.

    Args:
        model: whose head it is.
        states: `[K, 2, P, Z]` as `record` returns them.
    """

    states: Tensor

    def __init__(self, model: VibeVoice, states: Tensor) -> None:
        super().__init__()
        self.process, self.latent_shape = PROCESS, (len(states), model.config.audio_config.hidden_size)
        self.num_classes, self.min_stages, self.max_stages = states.shape[2], len(states), len(states)
        self.diffusion_head = model.model.diffusion_head
        self.register_buffer("states", states.to(self.device), persistent=False)

    def begin(self, condition: Tensor | None, sampling: SamplingConfig, noise: NoiseSource) -> _Drawn:
        if condition is None:
            raise ValueError("what is drawn follows recorded phrases: give their numbers as labels")
        return _Drawn(condition, sampling)

    def propose(self, state: _Drawn, stage: int) -> Proposal:
        guidance = state.sampling.guidance_at(stage)
        z = self.states[stage, : guidance.branches, state.phrases].flatten(0, 1)

        def embed(nodes: Nodes) -> Tensor:
            return nodes.on(self.device).to(self.dtype)

        def head(x: Tensor, time: Tensor) -> Tensor:
            return self.diffusion_head(x[:, 0], time.expand(len(x)), z[: len(x)])[:, None]

        denoise = guided(head, embed, self.process, guidance, guidance.at((stage + 1) / self.max_stages))
        return Proposal((1, self.latent_shape[1]), denoise, z=z[:, None])

    def accept(self, state: _Drawn, proposal: Proposal, tokens: Tensor) -> _Drawn:
        return state._replace(tokens=(*state.tokens, tokens))

    def finish(self, state: _Drawn) -> Tensor:
        missing = self.max_stages - len(state.tokens)
        return nn.functional.pad(torch.cat(state.tokens, dim=1), (0, 0, 0, missing))


def calibrate(
    model: VibeVoice,
    states: Tensor,
    solver: Solver,
    guidance_scale: float = 1.0,
    calibration: Calibration = Calibration(),
    samples: int = 1000,
    seed: int = 0,
) -> Profile:
    """Measures how fewer steps at each place shift what is drawn there, given the recorded states.

    The profile's `schedule(limit)` is the best budget. How a token changes what is said after it is not seen.

    Args:
        model: whose head draws.
        states: `[K, 2, P, Z]` as `record` returns them.
        solver: that the schedule is to be used with.
        guidance_scale: as `generate` is given it.
        calibration: what is measured.
        samples: how many are drawn, in turn of each recorded phrase.
        seed: of the noise.
    """
    recorded = RecordedTokens(model, states)
    sampling = SamplingConfig(solver=solver, guidance=Guidance(guidance_scale, "constant"))
    phrases = torch.arange(samples) % recorded.num_classes
    return measure_profile(recorded, phrases, sampling, calibration, seed=seed)
