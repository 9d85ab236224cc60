"""What a study found: its finalists, the comparison, tables and the page."""

from __future__ import annotations

import base64
import csv
import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna import Study

from disa_framework.callbacks.sample_writers import png, tiled
from disa_framework.metrics.images import to_uint8
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.config import SamplingConfig
from disa_framework.schedules import Constant, Linear
from disa_framework.search.finalists import candidates, choose, compare
from disa_framework.search.meter import Meter
from disa_framework.search.objective import Objective, sampling_of
from disa_framework.search.report import (
    cost_error,
    importance,
    summary,
    table,
    write_page,
    write_trials,
)
from disa_framework.search.study import ranked, search
from disa_framework.solvers import DDPM
from tests.models.tiny import tiny_mar
from tests.search.small import STAGES, Faulty, mixture_module, mixture_objective, per_stage

BASE = mixture_module().sampling
STARTS = {
    name: replace(BASE, schedule=schedule)
    for name, schedule in {"Constant": Constant(6), "Linear 10:1": Linear(10, 1), "Linear 3:1": Linear(9, 3)}.items()
}


@pytest.fixture(scope="module")
def objective() -> Objective:
    return mixture_objective(limit=24, also={"solver": (DDPM(), Faulty(most=9))})


@pytest.fixture(scope="module")
def study(objective: Objective) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(objective, 14, starts=STARTS)


def test_the_comparison_has_the_best_of_each_family_and_other_noise(study: Study, objective: Objective) -> None:
    linear = next(t for t in ranked(study) if t.user_attrs.get("start", "").startswith("Linear"))
    sampled = next(t for t in ranked(study) if "start" not in t.user_attrs)
    compared = candidates(study, objective, sampled, sampling_of(sampled))
    assert list(compared) == ["winner", *(n for n in compared if n in STARTS), "baseline"] and len(compared) == 4
    assert compared[linear.user_attrs["start"]] == sampling_of(linear)
    assert compared["baseline"].budget == (12,) * STAGES
    assert {n.partition(" ")[0] for n in compared if n in STARTS} == {"Constant", "Linear"}  # stopped early or not
    first = next(iter(candidates(study, objective, linear, sampling_of(linear))))
    assert first == f"winner ({linear.user_attrs['start']})"

    warm = replace(sampling_of(sampled), solver=DDPM(temperature=1.1))
    start = next(name for name in compared if name in STARTS)
    like_it = candidates(study, objective, sampled, warm)[f"{start}, else as the winner"]
    assert like_it.solver == warm.solver and like_it.budget == compared[start].budget

    told: list[tuple[int, int]] = []
    rows = compare(study, objective, compared, [], 2, lambda done, total: told.append((done, total)))
    assert told == [(i, 8) for i in range(1, 9)]
    meter = objective.meter
    assert rows[0].distances == tuple(meter.measure(compared["winner"], 96, seed) for seed in (1, 2))
    assert sampled.value not in rows[0].distances and rows[0].spread > 0
    assert rows[-1].cost == 48 and rows[0].cost <= 24 and rows[0].latency is None
    lines = table(rows, "evaluations")
    assert lines[0] == ["schedule", "steps", "first → last", "cost (evaluations)", "distance"]
    assert lines[-1][:4] == ["baseline", "48", "12 → 12", "48"] and "±" in lines[-1][4]


def test_a_comparison_is_not_drawn_twice(study: Study, objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = {"ours": per_stage(BASE, 5, 4, 3, 2)}
    rows = compare(study, objective, compared, [], seeds=2)
    monkeypatch.setattr(objective.meter, "measure", None)
    assert compare(study, objective, compared, [], seeds=2) == rows
    timed = compare(study, objective, compared, [16.0], seeds=1)
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
        assert tuple(map(int, row["budget"].split())) == sampling_of(trial).budget
        assert row["solver"] == trial.params["solver"] and row["error"] == trial.user_attrs.get("error", "")
        assert (float(row["distance"]) if row["distance"] else None) == trial.value
    assert {row["state"] for row in rows} == {"whole", "stopped early", "failed"}
    failed = sum(row["state"] == "failed" for row in rows)
    assert summary(study).startswith("14 trials: ") and f"{failed} failed" in summary(study)


def test_the_page_shows_everything_in_one_file(study: Study, objective: Objective, tmp_path: Path) -> None:
    best = choose(study, objective)
    compared = candidates(study, objective, best, sampling_of(best))
    compared |= {"costs $5, $\\frac (given)": objective.base}
    rows = compare(study, objective, compared, [], seeds=2)
    write_page(tmp_path / "a.html", study, objective, "A <title>", compared, rows, ["a <note>"])
    page = (tmp_path / "a.html").read_text()
    assert "A &lt;title&gt;" in page and "a &lt;note&gt;" in page and "http" not in page
    assert page.count("<tr>") == 1 + len(rows)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 4 + 2 and all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)


def test_what_two_configs_draw_is_shown_from_the_same_noise() -> None:
    module = ARDiffusionModule(tiny_mar(latent_channels=1), SamplingConfig(Constant(3), num_stages=2))
    meter = Meter(module, None, torch.tensor([0, 1]), 4, {"accelerator": "cpu"})
    shown = {steps: meter.picture(replace(module.sampling, schedule=Constant(steps))) for steps in (3, 2)}
    with torch.inference_mode():
        drawn = module.draw(torch.tensor([0, 1] * 10), torch.arange(20))
    assert shown[3] == png(tiled(to_uint8(drawn))) != shown[2]
    other = ARDiffusionModule(tiny_mar(latent_channels=4), module.sampling)
    assert Meter(other, None, None, 4, {"accelerator": "cpu"}).picture(module.sampling) is None  # no images


@pytest.mark.parametrize("name", [r"$\frac$.yaml", "$$", r"a$^_{\$", "<b>&.yaml", "漢字 😀", "x" * 250])
def test_a_start_may_have_any_name(name: str, tmp_path: Path) -> None:
    objective = mixture_objective(limit=24)
    study = search(objective, 1, starts={name: STARTS["Constant"]})
    rows = compare(study, objective, {name: STARTS["Constant"]}, [], seeds=1)
    write_page(tmp_path / "a.html", study, objective, name, {name: STARTS["Constant"]}, rows)
    page = (tmp_path / "a.html").read_text()
    assert f"<td>{html.escape(name)}</td>" in page and f"<title>{html.escape(name)}</title>" in page


def test_importance_tells_the_parameter_that_matters() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("much", 0, 1) + 0.01 * trial.suggest_float("little", 0, 1), 60)
    weights = importance(study)
    assert next(iter(weights)) == "much" and weights["much"] > 0.8
    assert importance(optuna.create_study()) == {}
