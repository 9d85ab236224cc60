from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from disa_framework.diagnostics import PARTS, Diagnosis, diagnose
from disa_framework.diagnostics.caching import cache_errors
from disa_framework.diagnostics.diagnosis import rank_correlation
from disa_framework.diagnostics.entropy import conditional_entropy
from disa_framework.diagnostics.predictability import predictability
from disa_framework.diagnostics.runs import watch
from disa_framework.guidance import Guidance
from disa_framework.models import ARDiffusionModel, MixtureAR
from disa_framework.models.base import Condition, Delegating
from disa_framework.models.lazy import Lazy
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import Constant
from disa_framework.solvers import DPMSolverPP, Euler, LinearFlow, Uniform
from tests.models.tiny import tiny_mar
from tests.models.tiny_flow import tiny_xar
from tests.models.tiny_harmon import PROMPTS, TINY_VOCABULARY, tiny_harmon

STAGES = 4


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    """Of one Gaussian, where everything is known."""
    module = ARDiffusionModule(MixtureAR(STAGES, 1, process=LinearFlow()), Constant(3), DPMSolverPP(grid=Uniform()))
    found = diagnose(module, count=1200, batch_size=500, repeats=4, steps=40, menu=(2, 4, 10))
    assert module.schedule.budget(1) == (3,)
    return found


def conditional_variance() -> torch.Tensor:
    """Of each token given those before it."""
    return MixtureAR(STAGES, 1).cholesky.diagonal().square()


def test_variance_is_the_conditional_variance(diagnosis: Diagnosis) -> None:
    assert diagnosis.columns["variance"] == pytest.approx(conditional_variance().tolist(), rel=0.12)


def test_predictability_is_what_can_be_known(diagnosis: Diagnosis) -> None:
    explained = 1 - conditional_variance() / 0.06
    assert diagnosis.columns["r2"] == pytest.approx(explained.tolist(), abs=0.1)
    assert diagnosis.columns["mse"] == pytest.approx(conditional_variance().tolist(), rel=0.3)


def test_the_error_falls_with_the_steps(diagnosis: Diagnosis) -> None:
    columns = [diagnosis.columns[f"error_{steps}"] for steps in (2, 4, 10)]
    assert all(few >= more >= most for few, more, most in zip(*columns, strict=True))


def test_a_diagnosis_is_a_table_a_file_and_pictures(diagnosis: Diagnosis, tmp_path: Path) -> None:
    assert tuple(diagnosis.parts) == tuple(part for part in PARTS if part != "caching")  # a mixture caches nothing
    names = ["r2", "mse", "variance", "entropy", "straightness", "error_2", "error_4", "error_10"]
    assert list(diagnosis.columns) == [*names, "backbone_ms", "head_ms"]
    lines = diagnosis.table()
    assert lines[0][0] == "stage" and lines[-1][0] == "trend" and len(lines) == STAGES + 2
    diagnosis.save(tmp_path / "stages.csv")
    rows = list(csv.DictReader((tmp_path / "stages.csv").read_text().splitlines()))
    assert [float(row["r2"]) for row in rows] == diagnosis.columns["r2"]
    axes = diagnosis.plot("error")
    assert [line.get_label() for line in axes.get_lines()] == names[5:]


@pytest.mark.parametrize(
    ("model", "condition"),
    [(tiny_mar(latent_size=8, patch_size=2), torch.arange(6) % 3), (tiny_harmon(TINY_VOCABULARY), PROMPTS)],
    ids=["MAR", "Harmon"],
)
def test_what_is_cached_is_exact_where_it_is_refreshed_and_off_in_between(
    model: ARDiffusionModel, condition: Condition
) -> None:
    module = ARDiffusionModule(model, guidance=Guidance(2.0), num_stages=8)
    found = diagnose(module, condition, parts=["caching"], steps=3)
    for period, errors in zip((2, 4, 8), found.parts["caching"].values(), strict=True):
        assert all(error < 1e-5 for error in errors[::period])
        assert all(0 < error < 1 for stage, error in enumerate(errors) if stage % period)
        # More tokens are behind the times at every stage, until all are computed.
        assert errors[1] < max(errors[1:period]) or period == 2
    exact = cache_errors(module, condition, len(condition), [Lazy(refresh=1)], steps=3)
    assert max(exact[0]) < 1e-5


def test_stages_are_the_same_whatever_the_batch_and_drawn_again_with_other_noise() -> None:
    module = ARDiffusionModule(tiny_mar(), guidance=Guidance(scale=1.5), num_stages=2)
    labels = torch.arange(7) % 3
    whole, parts = (watch(module, labels, 7, steps=3, repeats=2, batch_size=size) for size in (7, 3))
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.tokens, b.tokens, atol=1e-5)
        assert a.z is not None and b.z is not None and torch.allclose(a.z, b.z, atol=1e-5)
        assert a.z.shape[:2] == a.tokens.shape[:2]
        assert a.variance is not None and (a.variance > 0).all()
        assert a.straightness == pytest.approx(b.straightness, abs=1e-5)


def test_a_model_without_a_head_of_its_own_has_no_predictability() -> None:
    module = ARDiffusionModule(tiny_xar(), solver=Euler())
    found = diagnose(module, torch.zeros(4, dtype=torch.long), parts=["predictability", "entropy"], steps=2, repeats=2)
    assert list(found.columns) == ["entropy"]


def test_what_is_unknown_or_too_little_is_said() -> None:
    module = ARDiffusionModule(MixtureAR(2, 1))
    with pytest.raises(ValueError, match="no part 'colour': the parts of a diagnosis are predictability, "):
        diagnose(module, parts=["colour"])
    with pytest.raises(ValueError, match="at least 2 repeats, got 1"):
        diagnose(module, repeats=1)
    with pytest.raises(ValueError, match="at least 20 samples, got 5"):
        diagnose(module, parts=["predictability"], count=5, steps=2)
    with pytest.raises(ValueError, match="samples, steps, repeats and batch_size must be at least 1, got 0"):
        diagnose(module, parts=["variance"], count=0)


def test_a_predictor_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    z = [torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    first, again = (predictability(z, [2 * z[0], -z[1]], seed=1, steps=200) for _ in range(2))
    assert first == again and all(p.r2 > 0.9 for p in first)
    assert torch.equal(before, torch.get_rng_state())


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 5, 6, 100]) == pytest.approx(1)
    assert rank_correlation([3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 2]) == pytest.approx(0.8944, abs=1e-4)
    assert rank_correlation([4, 4, 4]) == 0


def test_predictability_does_not_depend_on_classes_coming_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 10
    meant = torch.randn(10, 4, generator=generator)[classes]
    z = torch.nn.functional.one_hot(classes, 10).float() + 0.1 * torch.randn(200, 10, generator=generator)
    (found,) = predictability([z[:, None]], [meant[:, None]], steps=300)
    assert found.r2 > 0.9


def test_a_model_that_is_watched_is_where_the_model_is() -> None:
    watched = Delegating(MixtureAR(num_tokens=4).to("meta"))
    assert watched.device.type == "meta" and watched.dtype == watched.watched.dtype
    assert not hasattr(watched, "cache") and hasattr(Delegating(tiny_mar()), "cache")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_mixture_is_diagnosed_on_cuda_as_on_the_host() -> None:
    model, classes = MixtureAR(num_tokens=4, num_classes=2), torch.tensor([0, 1, 0])
    expected = conditional_entropy(model, 2, classes, 3)
    assert conditional_entropy(model.to("cuda"), 2, classes, 3) == pytest.approx(expected, rel=1e-6)
