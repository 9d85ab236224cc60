"""What holds for every family: all solvers that fit its head, two processes, a run that goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.cli.common import find_config
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.hub.loading import build
from disa_framework.models import ARDiffusionModel
from disa_framework.nn.text import Words
from disa_framework.schedules import Linear
from disa_framework.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Halves,
    Heun,
    Solver,
    Spaced,
    Uniform,
    UniformTime,
    VPCosine,
)
from disa_framework.toy.digits import CAPTIONS
from disa_framework.toy.mixture import MixtureAR

FAMILIES = ("mar", "emigm", "flowar", "xar", "causal", "spherear", "harmon", "nova", "mar-mixture")
PROMPTED = ("harmon", "nova")
DIFFUSION = [
    DDPM(Spaced(clip=950)), DDPM(Spaced(), temperature=0.9), DDIM(Spaced(clip=950)), DDIM(), DPMSolver(1), DPMSolver(2),
    DPMSolver(3), DPMSolverPP(1), DPMSolverPP(2), DPMSolverPP(3), DPMSolver(1, UniformTime()),
]  # fmt: skip
FLOW = [Euler(), Euler(Halves()), Heun(), Heun(Halves()), EulerMaruyama(), EulerMaruyama(Uniform()),
        EulerMaruyama(final_step="flow")]  # fmt: skip


def tiny_digits(name: str) -> ARDiffusionModel:
    """The model of a configuration on digits, narrowed, with weights that are nowhere zero."""
    described = yaml.safe_load(Path(find_config(f"digits/{name}")).read_text())["model"]
    small = {"head_width": 64, "head_depth": 1, "modulations": 1, "width": 16, "depth": 1}
    options: dict[str, Any] = {
        option: next((small[part] for part in small if option.endswith(part)), value)
        for option, value in described["init_args"].items()
    }
    if "text_encoder" in options:
        options["text_encoder"] = Words(**options["text_encoder"])
    model = build(described["class_path"], options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        of_norm = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(of_norm), std=0.1, generator=generator)
    assert isinstance(model, ARDiffusionModel)
    return model.eval()


@pytest.mark.filterwarnings("ignore:no integer stride")
@pytest.mark.parametrize("name", ["mar", "flowar", "xar", "causal", "spherear", "nova"])
def test_every_solver_that_fits_draws_with_guidance(name: str) -> None:
    model, asked = tiny_digits(name), [*CAPTIONS[:2]] if name in PROMPTED else torch.tensor([3, 7])
    solvers: list[Solver] = [*DIFFUSION] if isinstance(model.process, VPCosine) else [*FLOW]
    for solver in solvers:
        drawn = [
            generate(model, asked, SamplingConfig(Linear(6, 2), solver, guidance=guidance))
            for guidance in (Guidance(), Guidance(2.0), Guidance(2.0, interval=(0.2, 0.8)))
        ]
        assert all(latents.isfinite().all() for latents in drawn), solver
        assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2]), solver


def test_a_solver_that_does_not_fit_says_which_do() -> None:
    flow = tiny_digits("xar")
    with pytest.raises(ValueError, match="use Euler, Heun or EulerMaruyama"):
        generate(flow, torch.tensor([3]), SamplingConfig(solver=DDPM()))
    with pytest.raises(ValueError, match="use DDPM, DDIM or DPMSolverPP"):
        generate(MixtureAR(), sampling=SamplingConfig(solver=Euler()), batch_size=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_and_a_run_that_goes_on_draw_the_same_files(name: str, tmp_path: Path) -> None:
    quiet = ["--config", f"digits/{name}", "--trainer.enable_progress_bar", "false"]
    few = ["--trainer.max_steps", "2", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    fit([*quiet, *few, "--data.batch_size", "8", "--trainer.default_root_dir", str(tmp_path)])
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    asked = ["--prompts", str(tmp_path / "prompts.txt"), "--each", "2"] if name in PROMPTED else []
    drawing = [*quiet, "--ckpt_path", str(tmp_path / "last.ckpt"), "--batch_size", "2", "--schedule", "Constant",
               "--schedule.steps", "2", *(asked or ["--num_images", "6"])]  # fmt: skip

    one = predict([*drawing, "--output", str(tmp_path / "one")])
    whole = {file.relative_to(one.path): file.read_bytes() for file in one.path.rglob("*.png")}
    assert len(whole) == 6 and len(set(whole.values())) == 6

    for file in list(whole)[:3]:
        (one.path / file).unlink()
    predict([*drawing, "--output", str(one.path)])
    assert {file: (one.path / file).read_bytes() for file in whole} == whole

    two = tmp_path / "two"
    program = str(Path(sys.executable).with_name("disa-predict"))
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [program, *drawing, *devices, "--output", str(two)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {file.relative_to(two): file.read_bytes() for file in two.rglob("*.png")} == whole
