from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from disa_framework import Guidance, Lazy, SamplingConfig
from disa_framework.diagnostics import PARTS, Diagnosis, Probe, diagnose
from disa_framework.diagnostics.caching import cache_errors
from disa_framework.diagnostics.entropy import conditional_entropy
from disa_framework.diagnostics.predictability import predictability
from disa_framework.diagnostics.runs import watch
from disa_framework.models import ARDiffusionModel
from disa_framework.models.base import Delegating
from disa_framework.module import ARDiffusionModule
from disa_framework.sampling.condition import Condition
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP, Euler, RectifiedFlow, Uniform
from disa_framework.toy.mixture import MixtureAR
from examples.sequence import SequenceAR
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_xar
from tests.models.tiny_harmon import PROMPTS, TINY_VOCABULARY, tiny_harmon

STAGES = 4


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    """Of one Gaussian, where everything is known."""
    sampling = SamplingConfig(Constant(3), DPMSolverPP(grid=Uniform()))
    module = ARDiffusionModule(MixtureAR(STAGES, 1, process=RectifiedFlow()), sampling)
    found = diagnose(module, probe=Probe(count=1200, batch_size=500, repeats=4, steps=40, menu=(2, 4, 10)))
    assert module.sampling.schedule == Constant(3)
    return found


def conditional_variance() -> torch.Tensor:
    """Of each token given those before it."""
    return MixtureAR(STAGES, 1).cholesky.diagonal().square()


def test_variance_is_the_conditional_variance(diagnosis: Diagnosis) -> None:
    assert diagnosis.columns["variance"] == pytest.approx(conditional_variance().tolist(), rel=0.12)


def test_predictability_is_what_can_be_known(diagnosis: Diagnosis) -> None:
    explained = 1 - conditional_variance() / 0.06
    assert diagnosis.columns["r2"] == pytest.approx(explained.tolist(), abs=0.1)


def test_the_error_falls_with_the_steps(diagnosis: Diagnosis) -> None:
    columns = [diagnosis.columns[f"error_{steps}"] for steps in (2, 4, 10)]
    assert all(few >= more >= most for few, more, most in zip(*columns, strict=True))


def test_a_diagnosis_is_a_table_and_a_file(diagnosis: Diagnosis, tmp_path: Path) -> None:
    assert tuple(diagnosis.parts) == tuple(part for part in PARTS if part != "caching")  # a mixture caches nothing
    names = ["r2", "variance", "entropy", "straightness", "error_2", "error_4", "error_10"]
    assert list(diagnosis.columns) == [*names, "backbone_ms", "head_ms"]
    lines = diagnosis.table()
    assert lines[0][0] == "stage" and lines[-1][0] == "trend" and len(lines) == STAGES + 2
    page = diagnosis.save(tmp_path / "new")
    rows = list(csv.DictReader(page.with_suffix(".csv").read_text().splitlines()))
    assert [float(row["r2"]) for row in rows] == diagnosis.columns["r2"]
    assert {path.stem for path in page.parent.glob("*.png")} == {*diagnosis.parts} and "trend" in page.read_text()


@pytest.mark.parametrize(
    ("model", "condition"),
    [(tiny_mar(latent_size=8, patch_size=2), torch.arange(6) % 3), (tiny_harmon(TINY_VOCABULARY), PROMPTS)],
    ids=["MAR", "Harmon"],
)
def test_what_is_cached_is_exact_where_it_is_refreshed_and_off_in_between(
    model: ARDiffusionModel, condition: Condition
) -> None:
    module = ARDiffusionModule(model, SamplingConfig(Constant(3), guidance=Guidance(2.0), num_stages=8))
    found = diagnose(module, condition, ["caching"], Probe(steps=3))
    for period, errors in zip((2, 4, 8), found.parts["caching"].values(), strict=True):
        assert all(error < 1e-5 for error in errors[::period])
        assert all(0 < error < 1 for stage, error in enumerate(errors) if stage % period)
        # More tokens are behind the times at every stage, until all are computed.
        assert errors[1] < max(errors[1:period]) or period == 2
    exact = cache_errors(module, condition, len(condition), [Lazy(refresh=1)])
    assert max(exact[0]) < 1e-5


def test_stages_are_the_same_whatever_the_batch_and_drawn_again_with_other_noise() -> None:
    module = ARDiffusionModule(tiny_mar(), SamplingConfig(guidance=Guidance(scale=1.5), num_stages=2))
    labels = torch.arange(7) % 3
    whole, parts = (watch(module, labels, Probe(steps=3, repeats=2, batch_size=size)) for size in (7, 3))
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.tokens, b.tokens, atol=1e-5)
        assert a.z is not None and b.z is not None and torch.allclose(a.z, b.z, atol=1e-5)
        assert a.z.shape[:2] == a.tokens.shape[:2]
        assert a.variance is not None and (a.variance > 0).all()
        assert a.straightness == pytest.approx(b.straightness, abs=1e-5)


def test_a_model_without_a_head_of_its_own_has_no_predictability() -> None:
    module, labels = ARDiffusionModule(tiny_xar(), SamplingConfig(solver=Euler())), torch.zeros(4, dtype=torch.long)
    found = diagnose(module, labels, ["predictability", "entropy"], Probe(steps=2, repeats=2))
    assert list(found.columns) == ["entropy"]


def test_sequences_of_any_length_are_diagnosed() -> None:
    phones = torch.arange(24 * 6).view(24, 6) % 5
    condition = {"phones": phones, "length": 1 + torch.arange(24) % 3}  # no stage after the third one is needed
    module = ARDiffusionModule(SequenceAR(length=6, channels=2, num_phones=5), SamplingConfig(solver=Euler()))
    found = diagnose(module, condition, probe=Probe(steps=2, repeats=2, menu=(2, 3), batch_size=10))
    assert len(found.rows) == 6 and {"r2", "variance", "error_3", "head_ms"} <= {*found.columns}
    assert max(found.columns["error_2"][3:]) == 0 < found.columns["error_2"][0]


@pytest.mark.parametrize(
    ("parts", "probe", "message"),
    [
        (["colour"], {}, "no part 'colour': the parts of a diagnosis are predictability, "),
        (["variance"], {"repeats": 1}, "at least 2 repeats, got 1"),
        (["predictability"], {"count": 5, "steps": 2}, "at least 20 samples, got 5"),
        *(([], {name: 0}, f"{name} must be a whole number from 1 .* got 0")
          for name in ("count", "steps", "repeats", "batch_size", "stride")),
    ],
)  # fmt: skip
def test_what_is_unknown_or_too_little_is_said(parts: list[str], probe: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(ARDiffusionModule(MixtureAR(2, 1)), None, parts, Probe(**probe))  # type: ignore[arg-type]


def test_a_predictor_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    z = [torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    first, again = (predictability(z, [2 * z[0], -z[1]], seed=1, steps=200) for _ in range(2))
    assert first == again and min(first) > 0.9
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 5, 6, 100], 1), ([3, 2, 1], -1), ([1, 1, 2, 2], 0.8944), ([4, 4, 4], 0)]
)
def test_a_trend_is_spearmans_correlation_with_the_stage(values: list[float], expected: float) -> None:
    assert Diagnosis({"part": {"column": values}}).trend("column") == pytest.approx(expected, abs=1e-4)


def test_predictability_does_not_depend_on_classes_coming_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 10
    meant = torch.randn(10, 4, generator=generator)[classes]
    z = torch.nn.functional.one_hot(classes, 10).float() + 0.1 * torch.randn(200, 10, generator=generator)
    (found,) = predictability([z[:, None]], [meant[:, None]], steps=300)
    assert found > 0.9


def test_a_model_that_is_watched_is_where_the_model_is() -> None:
    watched = Delegating(MixtureAR(num_tokens=4).to("meta"))
    assert watched.device.type == "meta" and watched.dtype == watched.watched.dtype
    assert not watched.caches_features and Delegating(tiny_mar()).caches_features


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_mixture_is_diagnosed_on_cuda_as_on_the_host() -> None:
    model, classes = MixtureAR(num_tokens=4, num_classes=2), torch.tensor([0, 1, 0])
    expected = conditional_entropy(model, 2, classes, 3)
    assert conditional_entropy(model.to("cuda"), 2, classes, 3) == pytest.approx(expected, rel=1e-6)
