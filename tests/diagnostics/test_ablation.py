from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from disa_framework import SamplingConfig
from disa_framework.diagnostics import ABLATIONS, Ablation, Variation, ablate
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.search.meter import Meter
from disa_framework.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, RectifiedFlow, Solver, Spaced, Strided
from disa_framework.toy.exact import SlicedWasserstein
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny_flow import tiny_flowar


def variations(
    name: str, steps: int, menu: tuple[int, ...], model: ARDiffusionModel | None = None, **sampling: Any
) -> dict[str, SamplingConfig]:
    module = ARDiffusionModule(model or MixtureAR(), SamplingConfig(**sampling))
    return ABLATIONS[name](module, steps, menu)


def test_early_and_late_cuts_have_the_same_steps() -> None:
    found = variations("early_late", 20, (2, 5), num_stages=4)
    assert [s.budget for s in found.values()] == [
        (20, 20, 20, 20), (2, 2, 20, 20), (20, 20, 2, 2), (5, 5, 20, 20), (20, 20, 5, 5),
    ]  # fmt: skip
    assert list(found)[1:3] == ["2 early, 20 late", "20 early, 2 late"]


def test_schedules_of_equal_mean_have_an_equal_mean() -> None:
    found = variations("equal_mean", 50, (2, 5))
    assert len(found) == 5 and all(abs(sum(s.budget) / 16 - 26) <= 0.5 for s in found.values())


def test_clip_changes_the_first_time_and_nothing_else() -> None:
    found = list(variations("clip", 10, (4,), solver=DDIM(eta=0.5)).values())
    assert [s.solver for s in found] == [DDIM(Spaced(950), 0.5), DDIM(Spaced(None), 0.5)] * 2
    assert [s.budget[0] for s in found] == [4, 4, 10, 10]
    with pytest.raises(ValueError, match="needs a solver on the grid Spaced"):
        variations("clip", 20, (2,), solver=DDIM(Strided()))


@pytest.mark.parametrize(("process", "solver"), [(None, DDPM()), (RectifiedFlow(), Euler())])
def test_solvers_are_compared_at_equal_evaluations(process: RectifiedFlow | None, solver: Solver) -> None:
    model = MixtureAR(4, 2, process=process)
    found = variations("solvers", 20, (2, 7), model, solver=solver).values()
    assert ({Euler, Heun} if process else {DDPM, DPMSolverPP}) <= {type(s.solver) for s in found}
    counts = [s.evaluations(model.process) / s.stages for s in found]
    assert counts == sorted(counts) and set(counts) == {2, 7, 20}


def test_stages_are_halved_down_to_two() -> None:
    found = variations("stages", 20, (2, 5), num_stages=12)
    assert [s.num_stages for s in found.values()] == [12, 12, 6, 6, 3, 3]
    with pytest.raises(ValueError, match="cannot draw in fewer stages than 3"):
        variations("stages", 20, (2, 5), tiny_flowar(), solver=Euler())


def meter() -> Meter:
    labels = torch.zeros(1000, dtype=torch.long)
    return Meter(ARDiffusionModule(MixtureAR()), SlicedWasserstein(32), labels, 1000, {"accelerator": "cpu"})


def test_early_cuts_are_worse_than_late_ones(tmp_path: Path) -> None:
    told = []
    found = ablate(meter(), "early_late", 1000, 20, [2], 2, lambda *done: told.append(done))
    none, early, late = found.variations
    assert told == [(i, 6) for i in range(1, 7)]
    assert min(found.asymmetry()[2]) > 4 and none.mean < late.mean < early.mean
    assert [each.evaluations for each in found.variations] == [320, 176, 176]
    assert found.table()[2][:3] == ["2 early, 20 late", "2 → 20", "176"] and "cut to 2 steps" in found.notes[0]
    page = found.save(tmp_path / "new")
    rows = list(csv.DictReader(page.with_name("early_late.csv").read_text().splitlines()))
    assert [float(row["distance_1"]) for row in rows] == [each.distances[1] for each in found.variations]
    assert "data:image/png" in page.read_text() and page.with_name("early_late.png").exists()


def test_an_asymmetry_is_a_ratio_for_each_seed() -> None:
    sampling = SamplingConfig(num_stages=2)
    early, late = Variation("", sampling, (6.0, 9.0), 1), Variation("", sampling, (2.0, 1.0), 1)
    assert Ablation("early_late", (late, early, late)).asymmetry() == {50: [3.0, 9.0]}
    assert Ablation("clip", (late, early, late)).asymmetry() == {}


def test_what_cannot_be_varied_is_said() -> None:
    with pytest.raises(ValueError, match="no ablation 'weather': there are early_late, equal_mean, clip"):
        ablate(meter(), "weather", 10)
    with pytest.raises(ValueError, match=r"from 1 to below 20, got \[2, 20\]"):
        ablate(meter(), "clip", 10, 20, [2, 20])
