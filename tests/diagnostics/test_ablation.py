from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from disa_framework.diagnostics import ABLATIONS, Case, asymmetry, measure_ablation
from disa_framework.diagnostics.ablation import save, table
from disa_framework.models import MixtureAR
from disa_framework.models.lazy import Lazy
from disa_framework.module import ARDiffusionModule
from disa_framework.search.meter import Meter
from disa_framework.search.quality import SlicedWasserstein
from disa_framework.search.space import Setting
from disa_framework.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, LinearFlow, Spaced, Strided
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_flowar
from tests.search.small import mixture_meter, mixture_module

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated")


def settings(
    name: str, module: ARDiffusionModule, steps: int = 20, menu: tuple[int, ...] = (2, 5)
) -> dict[str, Setting]:
    return ABLATIONS[name](module, steps, menu)


def test_early_and_late_cuts_have_the_same_steps() -> None:
    found = settings("early_late", mixture_module())
    assert [s.budget for s in found.values()] == [
        (20, 20, 20, 20), (2, 2, 20, 20), (20, 20, 2, 2), (5, 5, 20, 20), (20, 20, 5, 5),
    ]  # fmt: skip
    assert list(found)[1:3] == ["2 early, 20 late", "20 early, 2 late"]


def test_schedules_of_equal_mean_have_an_equal_mean() -> None:
    module = ARDiffusionModule(MixtureAR(), num_stages=16)
    found = settings("equal_mean", module, 50)
    assert len(found) == 5 and all(abs(sum(s.budget) / 16 - 26) <= 0.5 for s in found.values())


def test_clip_changes_the_first_time_and_nothing_else() -> None:
    module = ARDiffusionModule(MixtureAR(), solver=DDIM(eta=0.5))
    found = list(settings("clip", module, 10, (4,)).values())
    assert [s.solver for s in found] == [DDIM(Spaced(950), 0.5), DDIM(Spaced(None), 0.5)] * 2
    assert [s.budget[0] for s in found] == [4, 4, 10, 10]
    with pytest.raises(ValueError, match="needs a solver on the grid Spaced"):
        settings("clip", ARDiffusionModule(MixtureAR(), solver=DDIM(Strided())))


@pytest.mark.parametrize("process", [None, LinearFlow()])
def test_solvers_are_compared_at_equal_evaluations(process: LinearFlow | None) -> None:
    module = ARDiffusionModule(MixtureAR(4, 2, process=process))
    found = settings("solvers", module, 20, (2, 7)).values()
    assert ({Euler, Heun} if process else {DDPM, DPMSolverPP}) <= {type(s.solver) for s in found}
    counts = [s.solver.evaluations(module.model.process, s.budget[0]) for s in found]
    assert counts == sorted(counts) and set(counts) == {2, 7, 20}


def test_caches_are_compared_at_the_same_schedules() -> None:
    found = settings("caching", ARDiffusionModule(tiny_mar(), num_stages=4))
    caches = [setting.cache for setting in found.values()]
    assert caches == [cache for cache in (None, Lazy(2), Lazy(4), Lazy(8)) for _ in range(2)]
    assert {setting.budget for setting in found.values()} == {(20,) * 4, (20, 14, 8, 2)}
    with pytest.raises(ValueError, match="MixtureAR is none"):
        settings("caching", ARDiffusionModule(MixtureAR()))


def test_stages_are_halved_down_to_two() -> None:
    found = settings("stages", ARDiffusionModule(MixtureAR(), num_stages=12))
    assert [s.num_stages for s in found.values()] == [12, 12, 6, 6, 3, 3]
    with pytest.raises(ValueError, match="cannot draw in fewer stages than 3"):
        settings("stages", ARDiffusionModule(tiny_flowar(), solver=Euler()))


def test_early_cuts_are_worse_than_late_ones(tmp_path: Path) -> None:
    module = ARDiffusionModule(MixtureAR(), num_stages=16)
    meter = Meter(module, SlicedWasserstein(32), torch.zeros(1000, dtype=torch.long), 1000, {"accelerator": "cpu"})
    told = []
    with meter.lead():
        cases = measure_ablation(
            meter, "early_late", count=1000, steps=20, menu=[2], seeds=2, progress=lambda *done: told.append(done)
        )
    assert told == [(i, 6) for i in range(1, 7)]
    assert min(asymmetry(cases)[2]) > 4 and cases[0].mean < cases[2].mean < cases[1].mean
    assert [case.evaluations for case in cases] == [320, 176, 176]
    assert table(cases)[2][:3] == ["2 early, 20 late", "2 → 20", "176"]
    save(tmp_path / "a.csv", cases)
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [float(row["distance_1"]) for row in rows] == [case.distances[1] for case in cases]


def test_an_asymmetry_is_a_ratio_for_each_seed() -> None:
    early, late = (Setting.of(mixture_module()) for _ in range(2))
    cases = [Case("", early, (1.0, 1.0), 1), Case("", early, (6.0, 9.0), 1), Case("", late, (2.0, 1.0), 1)]
    assert asymmetry(cases) == {12: [3.0, 9.0]}


def test_what_cannot_be_varied_is_said() -> None:
    with pytest.raises(ValueError, match="no ablation 'weather': there are early_late, equal_mean, clip"):
        measure_ablation(mixture_meter(), "weather", count=10)
    with pytest.raises(ValueError, match=r"from 1 to below 20, got \[2, 20\]"):
        measure_ablation(mixture_meter(), "clip", count=10, steps=20, menu=[2, 20])
