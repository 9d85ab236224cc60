"""`generate` of a tiny VibeVoice with random weights draws as our schedules and solvers say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip(
    "transformers", minversion="5.23", reason="needs transformers: pip install 'disa-framework[speech]'"
)

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.integrations.transformers import AnnealedScheduler, RecordedTokens, calibrate, record
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.noise import PhiloxNoise
from disa_framework.schedules import Adaptive, Constant, Linear, PerStage
from disa_framework.search import Calibration
from disa_framework.solvers import (
    DDPM,
    DPMSolverPP,
    Euler,
    Linspace,
    LogSNR,
    SinglestepDPMSolverPP,
    Solver,
    Staged,
    UniPC,
    VPCosine,
)
from disa_framework.testing import ModelContract
from tests.integrations.tiny_vibevoice import CHANNELS, WIDTH, inputs, tiny_vibevoice

# Of diffusers about its own future.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PAGE = Path(__file__).parent.parent.parent / "docs/speech.md"
PUBLISHED = DPMSolverPP(grid=Linspace())
RAMP = PerStage((8, 6, 5, 4, 2))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_vibevoice()


def annealed(
    schedule: Any = RAMP, solver: Solver = PUBLISHED, num_stages: int = 5, **options: Any
) -> AnnealedScheduler:
    return AnnealedScheduler(SamplingConfig(schedule, solver, num_stages), **options)


@contextmanager
def watched(model: Any) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What the head is given `[2 B, D]` at each evaluation, and the tokens `[B, 1, D]` that come of it."""
    given, tokens = list[Tensor](), list[Tensor]()
    modules = (model.model.diffusion_head, model.model.multi_modal_projector)
    hooks = [
        module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for module, seen in zip(modules, (given, tokens), strict=True)
    ]
    try:
        yield given, tokens
    finally:
        for hook in hooks:
            hook.remove()


def speak(model: Any, scheduler: Any, *lengths: int, seed: int = 0, **options: Any) -> list[Tensor]:
    """The tokens of a call of `generate`."""
    with torch.random.fork_rng(devices=[]), watched(model) as (_, tokens):
        torch.manual_seed(seed)
        model.generate(**inputs(*lengths), noise_scheduler=scheduler, **options)
    return tokens


def published() -> Any:
    """The scheduler that VibeVoice comes with."""
    from diffusers import DPMSolverMultistepScheduler

    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    return DPMSolverMultistepScheduler(**options)


def steps_of(scheduler: AnnealedScheduler) -> list[int]:
    return [record.steps for record in scheduler.records]


# --- drawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(5,), (5, 5)])
def test_each_token_has_the_evaluations_of_its_place(model: Any, lengths: tuple[int, ...]) -> None:
    scheduler = annealed()
    with watched(model) as (given, tokens):
        speak(model, scheduler, *lengths)
    assert steps_of(scheduler) == [8, 6, 5, 4, 2]
    assert [record.evaluations for record in scheduler.records] == [8, 6, 5, 4, 2] and len(given) == 25
    assert len(tokens) == 5 and all(token.shape == (len(lengths), 1, CHANNELS) for token in tokens)


def test_behind_the_schedule_its_last_steps_go_on(model: Any) -> None:
    scheduler = annealed(Linear(8, 2), num_stages=3)
    speak(model, scheduler, 6, 4)
    assert steps_of(scheduler) == [8, 5, 2, 2, 2, 2]


@pytest.mark.parametrize("steps", [1, 5, 10, 20])
def test_constant_steps_draw_what_the_published_scheduler_draws(model: Any, steps: int) -> None:
    options: dict[str, Any] = {"guidance_scale": 1.3, "num_diffusion_steps": steps}
    theirs = speak(model, published(), 4, 3, **options)
    ours = speak(model, annealed(Constant(steps)), 4, 3, **options)
    for ours_at, theirs_at in zip(ours, theirs, strict=True):
        assert (ours_at - theirs_at).abs().max() <= 1e-5 * theirs_at.abs().max()


def test_in_bfloat16_tokens_are_those_of_the_published_scheduler_but_for_rounding() -> None:
    model = tiny_vibevoice().bfloat16()
    theirs, ours = (speak(model, scheduler, 3) for scheduler in (published(), annealed(Constant(10))))
    assert ours[0].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0.05 * theirs[0].abs().max().item())


def test_every_call_begins_anew(model: Any) -> None:
    scheduler = annealed(solver=DDPM(Linspace()))
    first, _, again = (speak(model, scheduler, length) for length in (4, 2, 4))
    assert steps_of(scheduler) == [8, 6, 5, 4]
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("evaluations", [0, 3, 8, 11])
def test_a_call_after_an_interrupted_one_begins_anew(model: Any, evaluations: int) -> None:
    scheduler, count = annealed(), iter(range(100))

    def stop(*_: Any) -> None:
        if next(count) == evaluations:
            raise KeyboardInterrupt

    hook = model.model.diffusion_head.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        speak(model, scheduler, 5)
    hook.remove()
    assert all(map(torch.equal, speak(model, scheduler, 5), speak(model, annealed(), 5)))
    assert steps_of(scheduler) == [8, 6, 5, 4, 2]


def test_noise_of_steps_comes_from_the_seed_alone(model: Any) -> None:
    solver = DPMSolverPP(grid=LogSNR(), eta=1.0)
    one, same, other = (speak(model, annealed(solver=solver, seed=seed), 3, 3) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same)) and not torch.allclose(one[0], other[0])
    assert not torch.allclose(one[0][0], one[0][1])
    # Of the global generator `generate` takes the initial noise, whatever the scheduler does.
    states = []
    for scheduler in (annealed(solver=solver), published()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.generate(**inputs(3), noise_scheduler=scheduler)
            states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "solver", [UniPC(LogSNR()), DDPM(), SinglestepDPMSolverPP(), DPMSolverPP(3, LogSNR(), eta=0.5)], ids=str
)
def test_any_solver_draws(model: Any, solver: Solver) -> None:
    scheduler = annealed(solver=solver)
    tokens = speak(model, scheduler, 5, 5, guidance_scale=1.3)
    assert all(token.isfinite().all() for token in tokens)
    evaluations = SamplingConfig(RAMP, solver, 5).evaluations(VPCosine(predicts="v"))
    assert sum(record.evaluations for record in scheduler.records) == evaluations


def test_places_may_have_solvers_of_their_own(model: Any) -> None:
    staged = Staged((PUBLISHED, DPMSolverPP(1, Linspace())))
    tokens = speak(model, annealed(Constant(4), staged, 2), 3)
    second = speak(model, annealed(Constant(4)), 3)
    assert torch.equal(tokens[0], second[0]) and not torch.allclose(tokens[1], second[1])


def test_an_adaptive_schedule_follows_what_the_last_token_showed(model: Any) -> None:
    schedule = Adaptive(threshold=20.0, low=2, high=12)
    scheduler = annealed(schedule)
    speak(model, scheduler, 6, guidance_scale=1.3)
    expected = [12, *(schedule.after(schedule.level(record)) for record in scheduler.records[:-1])]
    assert steps_of(scheduler) == expected and len({*expected}) > 1


BAD: dict[str, dict[str, Any]] = {
    "leave guidance, cache": {"guidance": Guidance(2.0)},
    "num_stages": {"num_stages": None},
    "temperature": {"solver": DPMSolverPP(grid=Linspace(), temperature=0.9)},
    "this head is": {"solver": Euler()},
}


@pytest.mark.parametrize("message", BAD)
def test_what_speech_cannot_be_drawn_with_is_refused(message: str) -> None:
    given: dict[str, Any] = {"schedule": RAMP, "solver": PUBLISHED, "num_stages": 5, **BAD[message]}
    with pytest.raises(ValueError, match=message):
        AnnealedScheduler(SamplingConfig(**given))


# --- recording and calibrating ----------------------------------------------------------------------------


def test_recorded_states_are_those_that_the_head_was_told(model: Any) -> None:
    told = list[Tensor]()
    hook = model.model.diffusion_head.cond_proj.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    states = record(model, **inputs(4, 4), noise_scheduler=annealed(Constant(2)))
    hook.remove()
    assert states.shape == (4, 2, 2, WIDTH)
    assert torch.equal(states.flatten(1, 2), torch.stack(told[::2]))
    assert len(record(model, **inputs(4, 2), noise_scheduler=annealed())) == 2  # while both speak


def test_the_head_alone_draws_from_recorded_states_what_generate_drew(model: Any) -> None:
    with watched(model) as (given, tokens):
        states = record(model, **inputs(5, 5), noise_scheduler=annealed(), guidance_scale=1.3)
    places = [0, 8, 14, 19, 23]  # of the first evaluations

    class Replayed(PhiloxNoise):
        def normal(self, stage: int, *_: Any) -> Tensor:
            return given[places[stage]][None, :2, None]

    sampling = SamplingConfig(RAMP, PUBLISHED, guidance=Guidance(1.3, "constant"))
    noise = Replayed(0, torch.arange(2))
    drawn = generate(RecordedTokens(model, states), torch.arange(2), sampling, noise=noise)
    torch.testing.assert_close(drawn, torch.cat(tokens, dim=1), rtol=0, atol=1e-5 * drawn.abs().max().item())


def test_a_calibrated_budget_is_spoken_with(model: Any) -> None:
    states = record(model, **inputs(4, 4), noise_scheduler=annealed(Constant(2)), guidance_scale=1.3)
    menu = Calibration(menu=(1, 2, 4, 8), other_steps=2)
    profile = calibrate(model, states, PUBLISHED, 1.3, menu, samples=64)
    assert profile.shifts.shape[:2] == (4, 4)
    assert all(errors[0] > errors[-1] for errors in profile.errors)
    schedule = profile.schedule(limit=14)
    assert len(schedule.steps) == 4 and sum(schedule.steps) <= 14
    scheduler = annealed(schedule, num_stages=4)
    speak(model, scheduler, 5, guidance_scale=1.3)
    assert steps_of(scheduler) == [*schedule.steps, schedule.steps[-1]]


def test_what_cannot_be_recorded_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected a VibeVoiceForConditionalGeneration, got Linear"):
        record(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="nothing was spoken"):
        record(model, **{**inputs(0), "max_new_tokens": 1}, noise_scheduler=annealed())
    with pytest.raises(ValueError, match="give their numbers"):
        generate(RecordedTokens(model, torch.zeros(2, 2, 3, WIDTH)), batch_size=1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'disa-framework\[speech\]'"):
        record(model)


class TestRecordedTokens(ModelContract):
    @pytest.fixture
    def model(self) -> ARDiffusionModel:
        return RecordedTokens(tiny_vibevoice(), torch.randn(4, 2, 3, WIDTH, generator=torch.Generator().manual_seed(0)))

    # There are no unconditional samples, and no training.
    test_guidance_of_scale_0_is_unconditional = None  # type: ignore[assignment]
    test_its_loss_comes_from_stages_in_their_order = None  # type: ignore[assignment]
    test_its_loss_reaches_nearly_all_parameters = None  # type: ignore[assignment]
    test_its_loss_is_a_function_of_the_generator = None  # type: ignore[assignment]


def test_the_code_of_the_page_runs(model: Any) -> None:
    names: dict[str, Any] = {"model": model, "inputs": inputs(5)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for code in blocks:
        exec(code, names)
    assert names["audio"][0].shape == (1, 40)
