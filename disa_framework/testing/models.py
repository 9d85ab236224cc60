"""What every AR model with a diffusion head has to hold."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from disa_framework.models.base import ARDiffusionModel, Delegating, Proposal
from disa_framework.sampling.condition import Condition, size, take
from disa_framework.sampling.config import FIELDS, SamplingConfig
from disa_framework.sampling.generation import Observer, advance, evaluating, generate, sample_stage, unfolding
from disa_framework.sampling.guidance import Guidance
from disa_framework.sampling.history import StageRecord
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.sampling.order import CheckerboardOrder, ListedOrder, RasterOrder
from disa_framework.sampling.stage_sizes import ExponentialSizes, LinearSizes, ListedSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import DDIM, DDPM, Components, Density, Euler, Process, RectifiedFlow, Solver, VPCosine
from disa_framework.solvers.process import of_kind

STEPS = 3
SEED = 5
SOLVERS: dict[type[Process], Solver] = {VPCosine: DDPM(), RectifiedFlow: Euler(), Density: Components()}
"""One for each kind of head."""


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


class StageLog(Observer):
    """Keeps what every stage proposes and draws."""

    def __init__(self) -> None:
        self.proposals: list[Proposal] = []
        self.records: list[StageRecord] = []
        self.tokens: list[Tensor] = []

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.proposals.append(proposal)

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.records.append(record)
        self.tokens.append(tokens)


class Asked(PhiloxNoise):
    """Keeps for which stages noise was asked."""

    def __init__(self, seed: int, indices: Tensor) -> None:
        super().__init__(seed, indices)
        self.stages: list[int] = []

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.stages.append(stage)
        return super().normal(stage, shape, draws, dtype)


class Ends(Delegating):
    """Keeps which samples had come to their end at last: none of an image."""

    early: bool

    def finish(self, state: Any) -> Tensor:
        self.early = bool(self.watched.finished(state).any())
        return super().finish(state)


def draw_with(model: ARDiffusionModel, sampling: SamplingConfig, **options: Any) -> Tensor:
    """As `generate`; `options` may also be fields of the sampling config, which they replace."""
    changes = {name: options.pop(name) for name in FIELDS if name in options}
    return generate(model, sampling=replace(sampling, **changes), **options)


class Twice(Delegating):
    """Proposes every stage twice."""

    def propose(self, state: Any, stage: int) -> Proposal:
        super().propose(state, stage)
        return super().propose(state, stage)


class ModelContract:
    """Subclass and override the fixture `model`; give it weights that are nowhere zero. A model that is asked for
    something else than class labels has `condition` overridden, too.

    Attributes:
        tolerance: between a sample drawn alone and in company, relative to the largest value.
        keeps_tokens: whether latents consist of the drawn tokens as they are; False where later stages
            refine earlier ones, or a model changes what is drawn.
        trained_share: share of the parameters that one batch gives a gradient.
    """

    tolerance: float = 1e-5
    keeps_tokens: bool = True
    trained_share: float = 0.9

    @pytest.fixture
    def model(self) -> ARDiffusionModel:
        raise NotImplementedError("override the fixture `model`")

    def condition(self, model: ARDiffusionModel) -> Condition | None:
        """The condition of a few samples that are unlike each other, in length, too, where that differs; `None` if the
        model cannot be asked for anything."""
        return torch.arange(model.num_classes) if model.num_classes else None

    def bad_conditions(self, model: ARDiffusionModel) -> dict[str, Condition]:
        """Conditions of two samples that the model cannot draw, by the pattern of what is said about them."""
        wrong = (-1, model.num_classes) if model.num_classes else ()
        return {rf"labels must lie in .* got {label}": torch.tensor([0, label]) for label in wrong}

    def asked(self, model: ARDiffusionModel, indices: Tensor) -> Condition | None:
        """What sample `i` is asked to be, as a function of `i`."""
        condition = self.condition(model)
        return None if condition is None else take(condition, [i % size(condition) for i in indices.tolist()])

    def sampling(self, model: ARDiffusionModel, **changes: Any) -> SamplingConfig:
        """How samples are drawn, in few steps and stages."""
        few = min(max(4, model.min_stages), model.max_stages)
        return replace(SamplingConfig(Constant(STEPS), of_kind(model.process, SOLVERS), few), **changes)

    def draw(self, model: ARDiffusionModel, indices: Iterable[int] = range(3), **options: Any) -> Tensor:
        """Latents of the samples `indices`; `options` are those of `draw_with`."""
        places = torch.tensor(list(indices))
        request = {"condition": self.asked(model, places), "seed": SEED, "indices": places, "batch_size": len(places)}
        return draw_with(model, self.sampling(model), **{**request, **options})

    def stages(self, model: ARDiffusionModel) -> list[int]:
        """Numbers of stages a sample is drawn in."""
        low, high = model.min_stages, model.max_stages
        return sorted({low, min(low + 1, high), high})

    def assert_close(self, found: Tensor, expected: Tensor) -> None:
        """Within the tolerance."""
        bound = self.tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=0, atol=bound)

    # --- drawing ----------------------------------------------------------------------------------------

    def test_latents_have_their_shape_and_are_finite(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            latents = self.draw(model, num_stages=num_stages)
            assert latents.shape == (3, *model.latent_shape)
            assert latents.isfinite().all(), num_stages

    def test_every_token_is_drawn_exactly_once(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            seen, watched = StageLog(), Ends(model)
            latents = self.draw(watched, num_stages=num_stages, observers=[seen])
            shapes = [proposal.shape for proposal in seen.proposals]
            assert all(n >= 1 for n, _ in shapes)
            assert [tokens.shape[1:] for tokens in seen.tokens] == shapes
            assert [record.tokens for record in seen.records] == [n for n, _ in shapes]
            assert all(p.z is None or p.z.shape[:2] == (3, p.shape[0]) for p in seen.proposals)
            assert watched.early or len(shapes) == num_stages
            if self.keeps_tokens and not watched.early:
                assert sum(n * channels for n, channels in shapes) == math.prod(model.latent_shape)
                drawn = torch.cat([tokens.flatten(1) for tokens in seen.tokens], dim=1)
                assert torch.equal(latents.flatten(1).sort().values, drawn.sort().values)

    def test_every_stage_has_noise_of_its_own(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            noise, seen = Asked(SEED, torch.arange(3)), StageLog()
            latents = self.draw(model, num_stages=num_stages, noise=noise, observers=[seen])
            assert noise.stages == [record.stage for record in seen.records] == list(range(len(seen.records)))
            assert torch.equal(latents, self.draw(model, num_stages=num_stages))

    def test_a_sample_depends_on_its_seed_and_index_alone(self, model: ARDiffusionModel) -> None:
        batch = self.draw(model, range(7))
        company = torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist()
        crowd = self.draw(model, company)
        for place in (4, 5, 6):
            alone = self.draw(model, [place])
            self.assert_close(batch[place : place + 1], alone)
            self.assert_close(crowd[company.index(place)][None], alone)
            assert not torch.allclose(batch[place], batch[place - 1])
            assert not torch.allclose(self.draw(model, [place], seed=SEED + 1), alone)

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
        for guidance in (Guidance(), Guidance(1.0, "constant"), Guidance(3.0)):
            with Work() as work:
                results.append(self.draw(model, guidance=guidance))
            costs.append(work.numbers)
        assert torch.equal(results[0], results[1])
        assert costs[0] == costs[1] < costs[2]

    def test_guidance_of_scale_0_is_unconditional(self, model: ARDiffusionModel) -> None:
        # Without noise between steps, as a variance that the head predicts is not guided.
        solver = DDIM() if isinstance(model.process, VPCosine) else of_kind(model.process, SOLVERS)
        guided = self.draw(model, solver=solver, guidance=Guidance(0.0, "constant"))
        unconditional = self.draw(model, condition=None, solver=solver)
        # The end of a sample is not guided: where that is over, there are zeros.
        self.assert_close(guided, unconditional * (guided != 0))

    def test_guidance_acts_however_few_stages_there_are(self, model: ARDiffusionModel) -> None:
        condition = self.condition(model)
        if condition is None or size(condition) == 1:
            return  # whose only condition says nothing
        for num_stages in self.stages(model):
            plain, guided = (self.draw(model, num_stages=num_stages, guidance=Guidance(s)) for s in (1.0, 5.0))
            assert not torch.allclose(plain, guided, rtol=0, atol=self.tolerance), num_stages

    def test_guidance_between_the_times_of_the_head_is_none(self, model: ARDiffusionModel) -> None:
        self.assert_close(self.draw(model, guidance=Guidance(5.0, interval=(0.41, 0.42))), self.draw(model))

    def test_guidance_of_some_stages_acts_there_alone_and_costs_nothing_elsewhere(
        self, model: ARDiffusionModel
    ) -> None:
        condition, K = self.condition(model), self.sampling(model).stages
        if condition is None or size(condition) == 1 or K == 1:
            return
        half = (K // 2 + 0.5) / K
        drawn, costs = [], []
        self.draw(model)  # what is made once is made
        for scale, stages in ((1.0, (0, 1)), (5.0, (0, 0)), (5.0, (0, half)), (5.0, (half, 1)), (5.0, (0, 1))):
            seen = StageLog()
            with Work() as work:
                self.draw(model, guidance=Guidance(scale, "constant", stages=stages), observers=[seen])
            drawn.append(seen.tokens)
            costs.append(work.numbers)
        plain, none, early, late, always = drawn
        assert all(map(torch.equal, plain, none)) and costs[0] == costs[1] < min(costs[2:4])
        assert max(costs[2:4]) < costs[4]
        for some, before, after in ((early, always, plain), (late, plain, always)):
            for k in range(K // 2):
                self.assert_close(some[k], before[k])
            assert not torch.allclose(some[0], after[0], rtol=0, atol=self.tolerance)

    def test_reused_guidance_saves_work_and_a_sample_still_does_not_depend_on_its_batch(
        self, model: ARDiffusionModel
    ) -> None:
        sampling = self.sampling(model)
        if sampling.evaluations(model.process) == sampling.stages:
            pytest.skip("a stage has one evaluation, which cannot be left out")
        drawn, costs = [], []
        self.draw(model)  # what is made once is made
        for period in (1, 2, STEPS):
            with Work() as work:
                drawn.append(self.draw(model, guidance=Guidance(2.0, "constant", reuse=period)))
            costs.append(work.numbers)
        assert costs[0] > costs[1] > costs[2]
        self.assert_close(self.draw(model, [2], guidance=Guidance(2.0, "constant", reuse=2)), drawn[1][2:3])

    # --- order ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def test_tokens_are_drawn_in_the_order_and_in_the_sizes_that_are_given(self, model: ARDiffusionModel) -> None:
        if model.layout is None:
            return
        rows, columns = model.layout.height, model.layout.width
        places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
        sizes = (2, 1, rows * columns - 3)
        changes = {"order": ListedOrder(tuple(places.tolist())), "stage_sizes": ListedSizes(sizes), "num_stages": None}
        sampling, noise = model.settle(self.sampling(model, **changes)), PhiloxNoise(SEED, torch.arange(3))
        with evaluating(model):
            state = model.begin(self.asked(model, noise.indices), sampling, noise)
            for k, count in enumerate(sizes):
                proposal = model.propose(state, k)
                assert proposal.shape[0] == count
                state = model.accept(state, proposal, torch.full((3, *proposal.shape), float(k), device=model.device))
            latents = model.finish(state)
        H, W = latents.shape[-2:]
        stage_of = latents[:, 0, :: H // rows, :: W // columns].flatten(1)
        expected = torch.arange(3).repeat_interleave(torch.tensor(sizes)).expand(3, -1)
        assert torch.equal(stage_of[:, places], expected.to(stage_of))

    def test_in_another_order_a_sample_does_not_depend_on_its_batch(self, model: ARDiffusionModel) -> None:
        changes = {"order": CheckerboardOrder(), "stage_sizes": ExponentialSizes()}
        if model.layout is None:
            return
        together = self.draw(model, range(5), **changes)
        self.assert_close(together[3:4], self.draw(model, [3], **changes))
        assert not torch.allclose(together, self.draw(model, range(5)))

    def test_an_order_and_sizes_that_do_not_fit_are_refused(self, model: ARDiffusionModel) -> None:
        changes: list[dict[str, Any]]
        changes = [{"order": ListedOrder((1, 0))}, {"stage_sizes": ListedSizes((1,) * self.sampling(model).stages)}]
        if model.layout is None:
            changes += [{"order": RasterOrder()}, {"stage_sizes": LinearSizes()}]
        for change in changes:
            with pytest.raises(ValueError, match=r"of 2 tokens|these sizes|leave"):
                model.settle(self.sampling(model, **change))

    # --- states -----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def test_a_state_can_be_gone_on_with_twice(self, model: ARDiffusionModel) -> None:
        places, sampling = torch.arange(3), model.settle(self.sampling(model, guidance=Guidance(2.0)))
        noise, solver = PhiloxNoise(SEED, places), sampling.solver

        def rest(state: Any) -> Tensor:
            return model.finish(advance(model, state, range(1, sampling.stages), lambda *_: STEPS, solver, noise))

        with evaluating(model):
            state = model.begin(self.asked(model, places), sampling, noise)
            first = model.propose(state, 0)
            tokens = sample_stage(model, first, 0, STEPS, solver, noise)
            elsewhere = rest(model.accept(state, first, tokens + 1))
            latents = rest(model.accept(state, first, tokens))
            again = sample_stage(model, model.propose(state, 0), 0, STEPS, solver, noise)
        assert torch.equal(tokens, again)
        assert torch.equal(latents, self.draw(model, guidance=Guidance(2.0)))
        assert torch.equal(latents, self.draw(Twice(model), guidance=Guidance(2.0)))
        assert not torch.equal(latents, elsewhere)

    def test_what_there_is_can_be_looked_at_after_every_stage(self, model: ARDiffusionModel) -> None:
        for num_stages in self.stages(model):
            sampling = self.sampling(model, num_stages=num_stages)
            asked = self.asked(model, torch.arange(3))
            *partial, whole = unfolding(model, asked, sampling, seed=SEED, batch_size=3)
            assert len(partial) < num_stages
            assert all(latents.shape == whole.shape and latents.isfinite().all() for latents in partial)
            assert torch.equal(whole, self.draw(model, num_stages=num_stages))
            if self.keeps_tokens:  # in their places
                assert all(torch.equal(latents[latents != 0], whole[latents != 0]) for latents in partial)

    @torch.inference_mode()
    def test_a_sample_that_has_ended_stays_as_it_is(self, model: ARDiffusionModel) -> None:
        places, sampling = torch.arange(3), model.settle(self.sampling(model))
        noise, ended = PhiloxNoise(SEED, places), dict[int, Tensor]()
        with evaluating(model):
            state = model.begin(self.asked(model, places), sampling, noise)
            for stage in range(sampling.stages):
                over = model.finished(state).nonzero().flatten().tolist()
                assert ended.keys() <= set(over)
                if over:
                    latents = model.finish(state)
                    ended |= {i: latents[i] for i in over if i not in ended}
                state = advance(model, state, range(stage, stage + 1), lambda *_: STEPS, sampling.solver, noise)
            latents = model.finish(state)
        assert all(torch.equal(latents[i], before) for i, before in ended.items())

    # --- inputs -----------------------------------------------------------------------------------------

    def test_conditions_that_it_cannot_draw_are_refused(self, model: ARDiffusionModel) -> None:
        for message, condition in self.bad_conditions(model).items():
            with pytest.raises(ValueError, match=message):
                self.draw(model, range(2), condition=condition)

    def test_stages_that_do_not_fit_are_refused(self, model: ARDiffusionModel) -> None:
        for num_stages in (model.min_stages - 1, model.max_stages + 1):
            with pytest.raises(ValueError, match="num_stages must"):
                self.draw(model, num_stages=num_stages)

    def test_a_settled_config_is_settled(self, model: ARDiffusionModel) -> None:
        settled = model.settle(self.sampling(model, num_stages=None))
        assert settled == model.settle(settled) == self.sampling(model, num_stages=model.max_stages)

    # --- training ---------------------------------------------------------------------------------------

    def loss(self, model: ARDiffusionModel, seed: int) -> Tensor:
        """The training loss of a batch of normals."""
        latents = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        condition = self.asked(model, torch.arange(6))
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

    def test_its_loss_comes_from_stages_in_their_order(self, model: ARDiffusionModel) -> None:
        if not any(True for _ in model.parameters()):
            return
        latents, condition = torch.zeros(2, *model.latent_shape), self.asked(model, torch.arange(2))
        losses = model.losses(latents, condition, torch.Generator().manual_seed(1))
        assert torch.equal(losses.total, model.loss(latents, condition, torch.Generator().manual_seed(1)))
        assert losses.drawn == tuple(sorted({*losses.drawn})) and all(0 <= share < 1 for share in losses.drawn)
        assert len(losses.drawn) == (0 if losses.parts is None else len(losses.parts))
        assert losses.parts is None or (losses.parts.isfinite().all() and not losses.parts.requires_grad)

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
