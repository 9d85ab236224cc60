"""What every AR model with a diffusion head has to hold."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from disa_framework.generation import Observer, StageRecord, advance, evaluating, generate, sample_stage
from disa_framework.guidance import Guidance
from disa_framework.models.base import ARDiffusionModel, Condition, Proposal
from disa_framework.noise import PhiloxNoise
from disa_framework.schedules import Constant
from disa_framework.solvers import DDIM, DDPM, Cosine, Euler, Solver


class Work(TorchFunctionMode):
    """Counts the numbers that all operations return, a measure of what is computed that needs no clock."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers += result.numel() if isinstance(result, Tensor) else 0
        return result


class Drawn(Observer):
    """Keeps what every stage proposes and draws."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.records: list[StageRecord] = []
        self.tokens: list[Tensor] = []

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.shapes.append(proposal.shape)

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.records.append(record)
        self.tokens.append(tokens)


class Asked(PhiloxNoise):
    """Keeps for which stages noise was asked."""

    def __init__(self, seed: int, indices: Tensor) -> None:
        super().__init__(seed, indices)
        self.stages: list[int] = []

    def normal(
        self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        self.stages.append(stage)
        return super().normal(stage, shape, draws, dtype)


class ModelContract:
    """Subclass and override the fixture `model`; give it weights that are nowhere zero.

    Attributes:
        tolerance: between a sample drawn alone and in company, relative to the largest value.
        keeps_tokens: whether latents consist of the drawn tokens as they are; False where later stages
            refine earlier ones.
        trained_share: share of the parameters that one batch gives a gradient.
    """

    tolerance: float = 1e-5
    keeps_tokens: bool = True
    trained_share: float = 0.9

    @pytest.fixture
    def model(self) -> ARDiffusionModel:
        raise NotImplementedError("override the fixture `model`")

    def condition(self, model: ARDiffusionModel, indices: Tensor) -> Condition | None:
        """What sample `i` is asked to be, as a function of `i`."""
        return indices % model.num_classes

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        """Conditions of two samples that the model cannot draw, by the pattern of what is said about them."""
        return {rf"labels must lie in .* got {label}": torch.tensor([0, label]) for label in (-1, model.num_classes)}

    def solver(self, model: ARDiffusionModel) -> Solver:
        """Turns noise into tokens in these tests."""
        return DDPM() if isinstance(model.process, Cosine) else Euler()

    def draw(self, model: ARDiffusionModel, indices: Iterable[int] = range(3), **options: Any) -> Tensor:
        """Latents of the samples `indices`, in few steps."""
        places = torch.tensor(list(indices))
        settings: dict[str, Any] = {
            "condition": self.condition(model, places),
            "schedule": Constant(3),
            "solver": self.solver(model),
            "num_stages": min(max(4, model.min_stages), model.max_stages),
            "seed": 5,
            "indices": places,
            "batch_size": len(places),
        }
        return generate(model, **{**settings, **options})

    def stages(self, model: ARDiffusionModel) -> list[int]:
        """Numbers of stages an image is drawn in."""
        low, high = model.min_stages, model.max_stages
        return sorted({low, min(low + 1, high), high})

    # --- drawing ----------------------------------------------------------------------------------------

    def test_latents_have_their_shape_and_are_finite(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            latents = self.draw(model, num_stages=num_stages)
            assert latents.shape == (3, *model.latent_shape)
            assert latents.isfinite().all(), num_stages

    def test_every_token_is_drawn_exactly_once(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            seen = Drawn()
            latents = self.draw(model, num_stages=num_stages, observers=[seen])
            assert all(n >= 1 for n, _ in seen.shapes)
            assert [tokens.shape[1:] for tokens in seen.tokens] == seen.shapes
            assert [record.tokens for record in seen.records] == [n for n, _ in seen.shapes]
            if self.keeps_tokens:
                assert sum(n * channels for n, channels in seen.shapes) == math.prod(model.latent_shape)
                drawn = torch.cat([tokens.flatten(1) for tokens in seen.tokens], dim=1)
                assert torch.equal(latents.flatten(1).sort().values, drawn.sort().values)

    def test_every_stage_has_noise_of_its_own(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            noise = Asked(5, torch.arange(3))
            latents = self.draw(model, num_stages=num_stages, noise=noise)
            assert noise.stages == list(range(num_stages))
            assert torch.equal(latents, self.draw(model, num_stages=num_stages))

    def test_a_sample_depends_on_its_seed_and_index_alone(self, model: ARDiffusionModel) -> None:
        place = 5
        alone = self.draw(model, [place])
        batch = self.draw(model, range(7))
        company = torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist()
        crowd = self.draw(model, company)
        bound = self.tolerance * max(1.0, alone.abs().max().item())
        torch.testing.assert_close(batch[place : place + 1], alone, rtol=0, atol=bound)
        torch.testing.assert_close(crowd[company.index(place)][None], alone, rtol=0, atol=bound)
        assert not torch.allclose(batch[place], batch[place - 1])
        assert not torch.allclose(self.draw(model, [place], seed=6), alone)

    def test_the_global_generators_are_neither_read_nor_moved(self, model: ARDiffusionModel) -> None:
        with torch.random.fork_rng(devices=[]):
            before = _global_state()
            first = self.draw(model)
            assert _global_state() == before
            torch.manual_seed(99)
            assert torch.equal(self.draw(model), first)

    # --- guidance ---------------------------------------------------------------------------------------

    def test_guidance_of_scale_1_is_none_and_costs_nothing(self, model: ARDiffusionModel) -> None:
        results, costs = [], []
        self.draw(model)  # what is made once is made
        for guidance in (None, Guidance(1.0), Guidance(3.0)):
            with Work() as work:
                results.append(self.draw(model, guidance=guidance))
            costs.append(work.numbers)
        assert torch.equal(results[0], results[1])
        assert costs[0] == costs[1] < costs[2]

    def test_guidance_of_scale_0_is_unconditional(self, model: ARDiffusionModel) -> None:
        # Without noise between steps, as a variance that the head predicts is not guided.
        solver = DDIM() if isinstance(model.process, Cosine) else Euler()
        guided = self.draw(model, solver=solver, guidance=Guidance(0.0, "constant"))
        unconditional = self.draw(model, solver=solver, condition=None)
        bound = self.tolerance * max(1.0, unconditional.abs().max().item())
        torch.testing.assert_close(guided, unconditional, rtol=0, atol=bound)

    def test_guidance_acts_however_few_stages_there_are(self, model: ARDiffusionModel) -> None:
        if model.num_classes == 1:
            return  # whose only class says nothing
        for num_stages in self.stages(model):
            plain, guided = (self.draw(model, num_stages=num_stages, guidance=Guidance(s)) for s in (1.0, 5.0))
            assert not torch.allclose(plain, guided, rtol=0, atol=self.tolerance), num_stages

    def test_guidance_between_the_times_of_the_head_is_none(self, model: ARDiffusionModel) -> None:
        plain, guided = self.draw(model), self.draw(model, guidance=Guidance(5.0, interval=(0.41, 0.42)))
        bound = self.tolerance * max(1.0, plain.abs().max().item())
        torch.testing.assert_close(guided, plain, rtol=0, atol=bound)

    # --- states -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def test_a_state_can_be_gone_on_with_twice(self, model: ARDiffusionModel) -> None:
        places, solver = torch.arange(3), self.solver(model)
        stages = min(max(4, model.min_stages), model.max_stages)
        noise = PhiloxNoise(5, places)

        def rest(state: Any) -> Tensor:
            return model.finish(advance(model, state, range(1, stages), lambda *_: 3, solver, noise))

        with evaluating(model):
            state = model.begin(self.condition(model, places), stages, Guidance(2.0), noise, len(places))
            first = model.propose(state, 0)
            tokens = sample_stage(model, first, 0, 3, solver, noise)
            again = sample_stage(model, model.propose(state, 0), 0, 3, solver, noise)
            assert torch.equal(tokens, again)
            elsewhere = rest(model.accept(state, first, tokens + 1))
            latents = rest(model.accept(state, first, tokens))
        assert torch.equal(latents, self.draw(model, guidance=Guidance(2.0)))
        assert not torch.equal(latents, elsewhere)

    # --- inputs -----------------------------------------------------------------------------------------

    def test_conditions_that_it_cannot_draw_are_refused(self, model: ARDiffusionModel) -> None:
        for message, condition in self.bad_conditions(model).items():
            with pytest.raises(ValueError, match=message):
                self.draw(model, range(2), condition=condition)

    def test_stages_that_do_not_fit_are_refused(self, model: ARDiffusionModel) -> None:
        for num_stages in (model.min_stages - 1, -1, model.max_stages + 1):
            with pytest.raises(ValueError, match=rf"num_stages must (lie in .* … |be ){model.max_stages} for"):
                self.draw(model, num_stages=num_stages)

    # --- training ---------------------------------------------------------------------------------------

    def loss(self, model: ARDiffusionModel, seed: int) -> Tensor:
        """The training loss of a batch of normals."""
        latents = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        condition = self.condition(model, torch.arange(6))
        return model.loss(latents, condition, torch.Generator().manual_seed(seed))

    def test_its_loss_reaches_nearly_all_parameters(self, model: ARDiffusionModel) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            with pytest.raises(NotImplementedError, match="no weights"):
                self.loss(model, 1)
            return
        loss = self.loss(model, 1)
        assert loss.ndim == 0 and loss.isfinite()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)
        reached = sum(g is not None and bool(g.any()) for g in gradients)
        assert reached >= self.trained_share * len(parameters)

    def test_its_loss_is_a_function_of_the_generator(self, model: ARDiffusionModel) -> None:
        if not any(True for _ in model.parameters()):
            return
        before = _global_state()
        assert torch.equal(self.loss(model, 1), self.loss(model, 1))
        assert not torch.equal(self.loss(model, 1), self.loss(model, 2))
        assert _global_state() == before


def _global_state() -> tuple[bytes, object, str]:
    """Where the global generators are."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())
