"""Flow-map heads: what is known of the exact map, the derivative that they learn from, and what they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.cli.fit import fit
from disa_framework.hub import load_model
from disa_framework.hub.checkpoint import load_weights, write_checkpoint
from disa_framework.nn.flow_map_head import FlowMapHead, WrittenNorm
from disa_framework.schedules import Constant
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    FlowMap,
    Heun,
    LogSNR,
    PowerTime,
    Solver,
    UniPC,
)
from tests.models.tiny import tiny_digits, tiny_mar

MEAN, STD = torch.tensor([1.5, -0.5]), 0.3
LABELS = torch.tensor([0, 2])
quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*in eval mode")


class Gaussian(FlowMapHead):
    """The exact map of normal tokens, whose deviation at a time is `q`; it is told times as they are."""

    def __init__(self, std: float) -> None:
        super().__init__(2, 1, 1, 2, 0.5)
        self.std = std
        nn.init.zeros_(self.log_weight.weight)
        nn.init.zeros_(self.log_weight.bias)

    def embed_jumps(self, s: Tensor, t: Tensor) -> Tensor:
        return torch.stack((s, t), dim=-1)

    def embed_cond(self, z: Tensor) -> Tensor:
        return torch.zeros(*z.shape[:-1], 2)

    def predict(self, x: Tensor, y: Tensor) -> Tensor:
        s, t = y[..., :1], y[..., 1:]
        noisy, clean = ((1 - time) * self.std for time in (s, t))
        q_s, q_t = (clean_part.square().add(time.square()).sqrt() for clean_part, time in ((noisy, s), (clean, t)))
        centred = x - (1 - s) * MEAN
        # (q_t - q_s) / (t - s), written so that it is dq/dt where both are the same.
        slope = (t + s - self.std**2 * (2 - s - t)) / (q_t + q_s)
        return -MEAN + slope / q_s * centred


def random_head(seed: int = 0) -> FlowMapHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = FlowMapHead(2, 3, 2, 16, 0.25)
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
        return head


def jumps(count: int = 6, width: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy tokens, beginnings and ends of jumps, and conditioning."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(count, size, generator=generator) for size in (2, width))
    s, t = torch.rand(2, count, generator=generator) * 0.45
    return x, s + 0.55, t, z


# --- the exact map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, STD])
@pytest.mark.parametrize("solver", [Euler(), Euler(PowerTime()), Euler(LogSNR())], ids=["uniform", "power", "log-SNR"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_jump_is_as_many_as_you_like(std: float, solver: Euler, steps: int) -> None:
    noise = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    denoise = Gaussian(std).denoiser(torch.zeros(1, 50, 1), 1.0, Guidance())
    start = solver.table(FlowMap(), steps).nodes.times[0]  # log-SNR grids begin close to noise
    tokens = solver.sample(denoise, FlowMap(), steps, lambda draws, dtype: noise[None])
    deviation = std / (((1 - start) * std) ** 2 + start**2) ** 0.5
    torch.testing.assert_close(tokens, MEAN + deviation * (noise - (1 - start) * MEAN), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [0.0, STD])
def test_the_exact_map_makes_no_errors_in_jumps(std: float) -> None:
    head, (x, s, t, z) = Gaussian(std), jumps(width=1)
    torch.testing.assert_close(head.jump_errors(x, s, t, z), torch.zeros(6, 2), rtol=0, atol=1e-4)
    head.std += 0.1  # a map of other tokens agrees with itself, but not with a teacher
    head.learn_from(Gaussian(std))
    assert head.jump_errors(x, s, t, z).abs().min() > 1e-3


def test_the_loss_of_the_exact_map_of_a_point_is_0_and_that_of_a_straight_line_is_not() -> None:
    head, clean, z = Gaussian(0.0), MEAN.expand(7, 2), torch.zeros(7, 1)
    corruption = head.corruption((4, 7), torch.Generator().manual_seed(0))
    assert head.loss(clean, z, *corruption).mean().item() == pytest.approx(0, abs=1e-6)
    head.std = 1.0
    assert head.loss(clean, z, *corruption).mean().item() > 0.1


# --- training ---------------------------------------------------------------------------------------------


def derivatives(of: Callable[[], Tensor], head: FlowMapHead) -> list[Tensor]:
    """Gradients of a random sum of what is computed."""
    weights = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    learned = [p for name, p in head.named_parameters() if "log_weight" not in name]
    return [*torch.autograd.grad((of() * weights).sum(), learned)]


def test_errors_of_jumps_and_their_gradients_are_those_of_finite_differences() -> None:
    head, (x, s, t, z), h = random_head(), jumps(), 2e-3
    with torch.no_grad():
        target = head.velocity(head.jump(x, s, t, z), t, z)

    def differences() -> Tensor:
        return (head.jump(x, s, t + h, z) - head.jump(x, s, t - h, z)) / (2 * h) - target

    torch.testing.assert_close(head.jump_errors(x, s, t, z), differences(), rtol=0, atol=2e-3)
    found, expected = (derivatives(of, head) for of in (lambda: head.jump_errors(x, s, t, z), differences))
    for exact, close in zip(found, expected, strict=True):
        assert (exact - close).abs().max() < 0.01 * (close.abs().max() + 0.1)


@pytest.mark.parametrize("affine", [True, False])
def test_the_written_norm_is_pytorchs(affine: bool) -> None:
    x, norms = torch.randn(5, 16), [kind(16, elementwise_affine=affine) for kind in (WrittenNorm, nn.LayerNorm)]
    for parameter in (p for norm in norms for p in norm.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.ndim))
    torch.testing.assert_close(*(norm(x) for norm in norms))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 7), (0.5, 14)])
def test_so_many_tokens_of_a_loss_are_jumps_and_these_go_towards_the_token(share: float, count: int) -> None:
    s, t, noise = FlowMapHead(2, 3, 1, 8, share).corruption((4, 7), torch.Generator().manual_seed(0))
    assert (s > t).sum() == count and (s >= t).all() and noise.shape == (4, 7, 2)
    assert t.min() > 0 and s.max() < 1


def test_a_taught_head_lands_where_its_teacher_goes() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = FlowMapHead(2, 1, 1, 32, 0.5)
    head.learn_from(Gaussian(STD))
    optimizer, z = torch.optim.Adam(head.parameters(), lr=1e-2), torch.zeros(64, 1)

    def missed() -> float:
        x, s, t, _ = jumps(64)
        with torch.no_grad():
            return float((head.jump(x, s, t, z) - head.teacher.jump(x, s, t, z)).square().mean())

    before = missed()
    for _ in range(40):
        optimizer.zero_grad()
        clean = MEAN + STD * torch.randn(64, 2, generator=generator)
        head.loss(clean, z, *head.corruption((1, 64), generator)).mean().backward()
        optimizer.step()
    assert missed() < 0.2 * before


def test_a_teacher_stays_as_it_is_and_is_in_no_file() -> None:
    head, (x, s, t, z) = random_head(), jumps()
    names, before = set(head.state_dict()), head.jump_errors(x, s, t, z)
    head.learn_from(head)
    assert set(head.state_dict()) == names
    torch.testing.assert_close(head.jump_errors(x, s, t, z), before)
    velocity = head.teacher.velocity(x, t, z)
    with torch.no_grad():
        head.net.final_layer.linear.bias.add_(1)
    torch.testing.assert_close(head.teacher.velocity(x, t, z), velocity)
    assert not any(parameter.requires_grad for parameter in head.teacher.parameters())


@quiet
def test_the_command_trains_the_head_alone_where_a_teacher_is_given(tmp_path: Path) -> None:
    flow, taught = tiny_digits(tmp_path, self_distillation=0.0), tmp_path / "taught"
    options = [*flow[:-2], "--model.self_distillation=0.5"]
    fit([
        *options, "--config=digits/mar-lsd", f"--trainer.default_root_dir={taught}", "--trainer.max_steps=2",
        "--samples=0", "--trainer.limit_val_batches=0", "--trainer.logger=false",
        "--trainer.callbacks+=disa_framework.callbacks.Teacher", f"--trainer.callbacks.weights={flow[-1]}",
    ])  # fmt: skip
    before, after = load_weights(flow[-1]), load_weights(taught / "last.ckpt")
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert changed and all(name.startswith("diffloss.") for name in changed)


# --- files and options ------------------------------------------------------------------------------------


def test_a_file_has_all_of_it(tmp_path: Path) -> None:
    model, sampling = tiny_mar(self_distillation=0.25), SamplingConfig(Constant(2), Euler(), 2)
    described = {"class_path": "disa_framework.models.MAR", "init_args": model.made_with}
    write_checkpoint(tmp_path / "it.safetensors", model.state_dict(), described)
    again = load_model(tmp_path / "it.safetensors")
    assert torch.equal(generate(again, LABELS, sampling), generate(model, LABELS, sampling))


@pytest.mark.parametrize("solver", [Heun(), EulerMaruyama(), DPMSolverPP(grid=LogSNR()), UniPC(), DDPM()], ids=str)
def test_a_solver_that_does_more_than_jump_is_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match="use Euler"):
        tiny_mar(self_distillation=0.25).settle(SamplingConfig(Constant(5), solver))


def test_ddims_steps_on_a_flow_are_jumps() -> None:
    model = tiny_mar(self_distillation=0.25)
    drawn = [generate(model, LABELS, SamplingConfig(Constant(3), solver)) for solver in (Euler(), DDIM(Euler().grid))]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_distillation": 1.0}, r"must lie in \[0, 1\)"),
        ({"self_distillation": -0.1}, r"must lie in \[0, 1\)"),
        ({"self_distillation": float("nan")}, r"must lie in \[0, 1\)"),
        ({"self_distillation": 0.25, "components": 3}, "not both"),
    ],
)
def test_arguments_that_make_no_head_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_mar(**options)


@quiet
def test_a_teacher_of_another_head_is_refused(tmp_path: Path) -> None:
    asked = ["--trainer.callbacks+=disa_framework.callbacks.Teacher", f"--trainer.default_root_dir={tmp_path}"]
    plain, flow = tiny_digits(tmp_path), tiny_digits(tmp_path, self_distillation=0.0)
    wrong = (("mar", plain, flow, "self_distillation"), ("mar-lsd", flow, plain, "does not fit"))
    for config, model, weights, message in wrong:
        with pytest.raises(ValueError, match=message):
            fit([f"--config=digits/{config}", *model[:-2], *asked, f"--trainer.callbacks.weights={weights[-1]}"])
