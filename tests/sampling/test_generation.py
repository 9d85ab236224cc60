"""The generation loop: what it draws, whom it tells, what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from disa_framework import Guidance, Lazy, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import ARDiffusionModel, Proposal
from disa_framework.schedules import Constant, Linear, PerStage, StepSchedule
from disa_framework.schedules.base import Budget
from disa_framework.solvers import DDPM, Euler, Spaced
from disa_framework.toy.mixture import MixtureAR
from examples.sequence import SequenceAR
from tests.models import tiny
from tests.models.tiny import tiny_mar


def draw(model: ARDiffusionModel | None = None, **options: Any) -> Tensor:
    """Two samples of a mixture of 6 tokens in 2 classes."""
    return tiny.draw(model or MixtureAR(num_tokens=6, num_classes=2), **options)


def test_a_few_lines_draw_samples() -> None:
    sampling = SamplingConfig(Linear(50, 5), DDPM(Spaced(clip=950)), num_stages=16)
    latents = generate(MixtureAR(), sampling=sampling, batch_size=64, seed=0)
    assert latents.shape == (64, 1, 1, 16) and latents.isfinite().all()


def test_a_condition_and_fewer_stages_than_the_most_make_a_difference() -> None:
    model = tiny_mar()
    assert draw(model).shape == (2, 1, 4, 4)
    assert not torch.equal(draw(model), draw(model, condition=torch.tensor([0, 1])))
    assert torch.equal(draw(), draw(num_stages=6))
    assert not torch.equal(draw(), draw(num_stages=5))


# --- randomness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MixtureAR(num_tokens=4), tiny_mar()], ids=["mixture", "MAR"])
def test_equal_budgets_give_equal_samples_whatever_made_them(model: ARDiffusionModel) -> None:
    constant = draw(model, schedule=Constant(5))
    assert torch.equal(draw(model, schedule=PerStage((5,) * 4)), constant)
    assert torch.equal(draw(model, schedule=Linear(5, 5)), constant)


def test_steps_of_a_stage_change_nothing_before_it() -> None:
    short, long = draw(schedule=Constant(5)), draw(schedule=PerStage((5, 5, 5, 5, 9, 5)))
    assert torch.equal(short[..., :4], long[..., :4])
    assert not torch.equal(short[..., 4], long[..., 4])


def test_indices_select_samples_of_a_longer_run() -> None:
    run = draw(batch_size=8)
    places = torch.tensor([6, 1, 3])
    torch.testing.assert_close(draw(batch_size=3, indices=places), run[places])
    assert not torch.allclose(draw(batch_size=8, seed=1), run)


# --- conditions and ends ----------------------------------------------------------------------------------


@pytest.fixture
def model() -> SequenceAR:
    """Sequences of six tokens at most."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SequenceAR(length=6, channels=2, num_phones=5).eval()


def sequences(*length: int) -> dict[str, Tensor]:
    return {"phones": torch.arange(6).expand(len(length), -1) % 5, "length": torch.tensor(length)}


def test_a_dictionary_draws_as_many_samples_as_it_has(model: SequenceAR) -> None:
    latents = generate(model, sequences(2, 6, 3, 1), SamplingConfig(Constant(2), Euler()))
    assert latents.shape == (4, 6, 2)
    assert [(row != 0).any(dim=1).sum().item() for row in latents] == [2, 6, 3, 1]


def test_no_stage_is_drawn_when_all_samples_have_come_to_their_end(model: SequenceAR) -> None:
    log = Log()
    latents = draw(model, condition=sequences(2, 3), observers=[log])
    assert [event[1].stage for event in log.events if event[0] == "accepted"] == [0, 1, 2]
    torch.testing.assert_close(latents, draw(model, condition=sequences(2, 3, 6))[:2])


# --- observers --------------------------------------------------------------------------------------------


class Log(Observer):
    """Keeps all it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.tokens: list[Tensor] = []

    def begin(self, model: ARDiffusionModel, num_stages: int, batch_size: int) -> None:
        self.events.append(("begin", num_stages, batch_size))

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.events.append(("proposed", stage, proposal.shape, steps))

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        self.events.append(("accepted", record))
        self.tokens.append(tokens)


def test_observers_are_told_everything_in_order() -> None:
    logs = [Log(), Log()]
    latents = draw(num_stages=3, schedule=PerStage((25, 4, 1)), observers=logs)
    assert logs[0].events == logs[1].events == [
        ("begin", 3, 2),
        # Of 25 steps two start above timestep 950 and coincide there.
        ("proposed", 0, (2, 1), 25), ("accepted", StageRecord(0, steps=25, evaluations=24, tokens=2)),
        ("proposed", 1, (2, 1), 4), ("accepted", StageRecord(1, steps=4, evaluations=4, tokens=2)),
        ("proposed", 2, (2, 1), 1), ("accepted", StageRecord(2, steps=1, evaluations=1, tokens=2)),
    ]  # fmt: skip
    assert torch.equal(torch.cat(logs[0].tokens, dim=1).flatten(1), latents.flatten(1))
    assert torch.equal(latents, draw(num_stages=3, schedule=PerStage((25, 4, 1))))  # who watches changes nothing


# --- adaptive schedules -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Falling(StepSchedule):
    """Two steps fewer than the stage before, whatever the budget says."""

    start: int
    seen: list[tuple[StageRecord, ...]] = field(default_factory=list, compare=False)

    def compute(self, num_stages: int) -> Iterable[int]:
        return [self.start] * num_stages

    def at(self, stage: int, budget: Budget, history: Sequence[StageRecord] = ()) -> int:
        self.seen.append(tuple(history))
        return max(1, history[-1].steps - 2) if history else budget[stage]


def test_an_adaptive_schedule_is_obeyed_and_sees_the_stages_before() -> None:
    schedule, log = Falling(6), Log()
    latents = draw(num_stages=4, schedule=schedule, observers=[log])
    assert [event[3] for event in log.events if event[0] == "proposed"] == [6, 4, 2, 1]
    records = [event[1] for event in log.events if event[0] == "accepted"]
    assert schedule.seen == [tuple(records[:stage]) for stage in range(4)]
    assert torch.equal(latents, draw(num_stages=4, schedule=PerStage((6, 4, 2, 1))))


# --- mistakes ---------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1])
MISTAKES: dict[str, dict[str, Any]] = {
    "unconditional generation needs batch_size": {"batch_size": None},
    "batch_size=3 contradicts a condition of 2": {"condition": LABELS, "batch_size": 3},
    "at least 1 sample, got 0": {"batch_size": 0},
    "at least 1 sample, got -1": {"batch_size": -1},
    "at least 1 sample, got 0$": {"condition": LABELS[:0]},
    "2 samples need 2 indices, got 3": {"indices": torch.arange(3)},
    "indices must lie in 0": {"indices": torch.tensor([0, -1])},
    r"labels must be integers \[B\], got torch.float32 \[2\]": {"condition": LABELS.float()},
    r"labels must be integers \[B\], got torch.int64 \[1, 2\]": {"condition": LABELS[None]},
    r"labels must lie in 0 … 1 for this model, got 2": {"condition": LABELS + 1},
    "num_stages must lie in 1 … 6 for this model, got 7": {"num_stages": 7},
    "3 stages needs as many step counts, got 2": {"num_stages": 3, "schedule": PerStage((5, 5))},
    "Euler is for linear flows": {"solver": Euler()},
    "num_stages must be a whole": {"num_stages": 0},
    "MixtureAR caches no features": {"cache": Lazy()},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**MISTAKES[message])


def test_dropout_takes_no_part_and_training_goes_on_after() -> None:
    model = tiny_mar(proj_dropout=0.5, attn_dropout=0.5)
    latents = draw(model, condition=LABELS, guidance=Guidance(2.0))
    assert not model.training and not latents.requires_grad
    assert torch.equal(draw(model.train(), condition=LABELS, batch_size=2, guidance=Guidance(2.0)), latents)
    assert model.training
