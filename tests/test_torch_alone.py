"""Samples are drawn where nothing but torch, safetensors, PyYAML and what these need is installed."""

import subprocess
import sys
from pathlib import Path

NEEDED = {"torch", "safetensors", "yaml", "typing_extensions"}
OF_TORCH = {
    "filelock", "fsspec", "functorch", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy", "torchgen",
    "triton",
}  # fmt: skip

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and not top.startswith(("nvidia", "_")):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

allowed = {allowed}
sys.meta_path.insert(0, Missing())

import torch
from disa_framework import Guidance, Lazy, SamplingConfig, generate
from disa_framework.models import MAR, XAR, CausalAR, FlowAR
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DPMSolverPP, Euler
from disa_framework.toy.mixture import MixtureAR

small = dict(latent_size=4, latent_channels=1, num_classes=3)
halves = dict(encoder_depth=1, encoder_heads=2, decoder_depth=1, decoder_heads=2)
models = {
    "MAR": MAR(**small, **halves, encoder_width=16, decoder_width=16, head_depth=1, head_width=16, buffer_size=2),
    "FlowAR": FlowAR(**small, **halves, scales=(1, 2, 4), width=16, head_depth=1, head_width=64),
    "XAR": XAR(**small, **halves, width=16),
    "CausalAR": CausalAR(**small, width=16, depth=1, heads=2, head_depth=1, head_width=16),
    "MixtureAR": MixtureAR(num_classes=3),
}
for name, model in models.items():
    flow = name in ("FlowAR", "XAR")
    sampling = SamplingConfig(Linear(3, 2), Euler() if flow else DPMSolverPP(), guidance=Guidance(2.0))
    sampling.save(sys.argv[1])
    latents = generate(model, torch.tensor([0, 2]), SamplingConfig.load(sys.argv[1]), seed=1)
    assert latents.shape == (2, *model.latent_shape) and latents.isfinite().all(), name
assert generate(models["MAR"], sampling=SamplingConfig(Constant(2), cache=Lazy()), batch_size=2).isfinite().all()
print(*sys.modules)
"""


def test_models_draw_with_pytorch_alone(tmp_path: Path) -> None:
    allowed = NEEDED | OF_TORCH | {"disa_framework"} | set(sys.stdlib_module_names)
    command = [sys.executable, "-c", PROGRAM.replace("{allowed}", repr(allowed)), str(tmp_path / "sampling.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"lightning", "numpy", "matplotlib", "optuna", "transformers", "torchmetrics", "jsonargparse"}
