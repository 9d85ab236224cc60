from __future__ import annotations

import base64
import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study

from disa_framework.schedules import Constant, Linear, PerStage
from disa_framework.search.objective import Objective
from disa_framework.search.report import (
    candidates,
    compare,
    cost_error,
    importance,
    pareto,
    summary,
    table,
    write_page,
    write_trials,
)
from disa_framework.search.space import Setting
from disa_framework.search.study import choose, ranked, search
from disa_framework.solvers import DDPM
from tests.search.small import STAGES, Faulty, mixture_module, mixture_objective

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated")

STARTS = {"Constant": Constant(6), "Linear 10:1": Linear(10, 1), "Linear 3:1": Linear(9, 3)}


@pytest.fixture(scope="module")
def objective() -> Objective:
    return mixture_objective(limit=24, also={"solvers": [DDPM(), Faulty(most=9)]})


@pytest.fixture(scope="module")
def study(objective: Objective) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(objective, 14, starts=STARTS)


def test_a_study_without_a_whole_trial_says_why() -> None:
    module = mixture_module()
    module.solver = Faulty(most=1)
    broken = mixture_objective(limit=48, module=module)
    failed = search(broken, 2, starts={"Constant": Constant(6), "Linear": Linear(9, 2)})
    with pytest.raises(ValueError, match="drawn to its end; 2 failed: ArithmeticError: the sampler broke down"):
        choose(failed, broken)


def test_the_comparison_has_the_best_of_each_family_and_other_noise(study: Study, objective: Objective) -> None:
    linear = next(t for t in ranked(study) if t.user_attrs.get("start", "").startswith("Linear"))
    sampled = next(t for t in ranked(study) if "start" not in t.user_attrs)
    settings = candidates(study, objective, sampled, objective.setting(sampled))
    assert list(settings) == ["winner", *(n for n in settings if n in STARTS), "baseline"] and len(settings) == 4
    assert settings[linear.user_attrs["start"]].budget == tuple(linear.user_attrs["budget"])
    assert settings["baseline"].budget == (12,) * STAGES
    assert {n.partition(" ")[0] for n in settings if n in STARTS} == {"Constant", "Linear"}  # stopped early or not
    first = next(iter(candidates(study, objective, linear, objective.setting(linear))))
    assert first == f"winner ({linear.user_attrs['start']})"

    warm = replace(objective.setting(sampled), solver=DDPM(temperature=1.1))
    start = next(name for name in settings if name in STARTS)
    like_it = candidates(study, objective, sampled, warm)[f"{start}, else as the winner"]
    assert like_it.solver == warm.solver and like_it.budget == settings[start].budget

    rows = compare(study, objective, settings, [], seeds=2)
    meter = objective.meter
    assert rows[0].distances == tuple(meter.measure(settings["winner"], 96, seed) for seed in (1, 2))
    assert sampled.value not in rows[0].distances and rows[0].spread > 0
    assert rows[-1].cost == 48 and rows[0].cost <= 24 and rows[0].latency is None
    lines = table(rows, "evaluations")
    assert lines[0] == ["schedule", "steps", "first → last", "cost (evaluations)", "distance"]
    assert lines[-1][:4] == ["baseline", "48", "12 → 12", "48"] and "±" in lines[-1][4]


def test_a_comparison_is_not_drawn_twice(
    study: Study, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ours": Setting(PerStage([5, 4, 3, 2]), DDPM(), objective.base.guidance, STAGES)}
    rows = compare(study, objective, settings, [], seeds=2)
    monkeypatch.setattr(objective.meter, "measure", None)
    assert compare(study, objective, settings, [], seeds=2) == rows
    timed = compare(study, objective, settings, [16.0], seeds=1)
    assert timed[0].latency == 16 and timed[0].cost == 14
    assert cost_error(timed) == pytest.approx(2 / 16) and cost_error(rows) is None
    assert table(timed, "seconds")[1] == ["ours", "14", "5 → 2", "14", "16", f"{timed[0].mean:.4g}"]


def test_the_table_of_trials_can_be_read(study: Study, tmp_path: Path) -> None:
    write_trials(tmp_path / "trials.csv", study)
    with (tmp_path / "trials.csv").open() as lines:
        rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    assert len(rows) == len(study.trials)
    for row, trial in zip(rows, study.trials, strict=True):
        assert int(row["number"]) == trial.number and row["start"] == trial.user_attrs.get("start", "")
        assert tuple(map(int, row["budget"].split())) == tuple(trial.user_attrs["budget"])
        assert row["solver"] == trial.params["solver"] and row["error"] == trial.user_attrs.get("error", "")
        assert (float(row["distance"]) if row["distance"] else None) == trial.value
    assert {row["state"] for row in rows} == {"whole", "stopped early", "failed"}
    failed = sum(row["state"] == "failed" for row in rows)
    assert summary(study).startswith("14 trials: ") and f"{failed} failed" in summary(study)


def test_the_page_shows_everything_in_one_file(study: Study, objective: Objective, tmp_path: Path) -> None:
    best = choose(study, objective)
    rows = compare(study, objective, candidates(study, objective, best, objective.setting(best)), [], seeds=2)
    write_page(tmp_path / "a.html", study, objective, rows, {row.name: row.setting.budget for row in rows}, "A <title>")
    page = (tmp_path / "a.html").read_text()
    assert "A &lt;title&gt;" in page and "http" not in page
    assert page.count("<tr>") == 1 + len(rows)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 4 and all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)


def test_importance_tells_the_parameter_that_matters() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("much", 0, 1) + 0.01 * trial.suggest_float("little", 0, 1), 60)
    weights = importance(study)
    assert next(iter(weights)) == "much" and weights["much"] > 0.8
    assert importance(optuna.create_study()) == {}


def test_a_front_has_what_nothing_beats() -> None:
    assert pareto([(3, 1), (1, 3), (2, 3), (2, 2), (3, 0.5), (4, 0.5)]) == [(1, 3), (2, 2), (3, 0.5)]
