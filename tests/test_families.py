"""What holds for every family: all solvers that fit its head, a run that goes on, two processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.amp import GradScaler
from torch.utils.data import DataLoader

from disa_framework import Guidance, SamplingConfig, generate
from disa_framework.cli.common import find_config
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.hub.loading import build
from disa_framework.models import ARDiffusionModel
from disa_framework.models.harmon import Vocabulary
from disa_framework.module import ARDiffusionModule
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
from disa_framework.testing.models import SOLVERS
from disa_framework.toy.digits import CAPTIONS
from disa_framework.toy.mixture import MixtureAR
from tests.models.tiny_harmon import tiny_harmon

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
    if name == "harmon":
        return tiny_harmon(Vocabulary(**described["init_args"]["tokenizer"]))
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


class Few(LightningDataModule):
    """One batch of two samples of noise."""

    def __init__(self, model: ARDiffusionModel, asked: Sequence[Any]) -> None:
        super().__init__()
        self.samples = [(torch.randn(model.latent_shape), condition) for condition in asked]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.samples, batch_size=2)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_training_changes_the_weights_in_every_precision(name: str, precision: Any) -> None:
    model = tiny_digits(name)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    how = {"precision": precision}
    if precision == "16-mixed":  # for which Lightning would take bfloat16 on a CPU
        how = {"plugins": MixedPrecision(precision, "cpu", GradScaler("cpu", init_scale=16.0))}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **how,
    )  # fmt: skip
    sampling = SamplingConfig(solver=SOLVERS[type(model.process)])
    trainer.fit(ARDiffusionModule(model.train(), sampling), Few(model, CAPTIONS[:2] if name in PROMPTED else [3, 7]))
    after = dict(model.named_parameters())
    assert all(weights.isfinite().all() for weights in after.values())
    assert any(not torch.equal(weights, before[place].to(weights.dtype)) for place, weights in after.items())


def drawn(name: str, folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """How a model is drawn with that is trained for two steps, and the six files of `folder / "one"` that it draws."""
    quiet = ["--config", f"digits/{name}", "--trainer.enable_progress_bar", "false"]
    few = ["--trainer.max_steps", "2", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    fit([*quiet, *few, "--data.batch_size", "8", "--trainer.default_root_dir", str(folder)])
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    asked = ["--prompts", str(folder / "prompts.txt"), "--each", "2"] if name in PROMPTED else []
    drawing = [*quiet, "--ckpt_path", str(folder / "last.ckpt"), "--batch_size", "2", "--schedule", "Constant",
               "--schedule.steps", "2", *(asked or ["--num_images", "6"])]  # fmt: skip
    predict([*drawing, "--output", str(folder / "one")])
    return drawing, files(folder / "one")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_that_goes_on_draws_the_same_files(name: str, tmp_path: Path) -> None:
    drawing, whole = drawn(name, tmp_path)
    assert len(whole) == 6 and len(set(whole.values())) == 6
    for file in list(whole)[:3]:
        (tmp_path / "one" / file).unlink()
    predict([*drawing, "--output", str(tmp_path / "one")])
    assert files(tmp_path / "one") == whole


def test_two_processes_draw_the_same_files(tmp_path: Path) -> None:
    drawing, whole = drawn("mar", tmp_path)
    program = str(Path(sys.executable).with_name("disa-predict"))
    two = ["--output", str(tmp_path / "two"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run([program, *drawing, *two], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == whole
