"""A recorded run on disk, and how outputs are compared with it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One case folder.

    Attributes:
        info: the content of `case.json`.
        io: recorded inputs, draws and outputs.
        weights: state dict with the published names.
    """

    info: dict[str, Any]
    io: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, folder: str | Path) -> Case:
        folder = Path(folder)
        info = json.loads((folder / "case.json").read_text())
        weights = folder / info.get("weights_file", "weights.safetensors")
        return cls(info, load_file(folder / "io.safetensors"), _load_weights(weights))


def _load_weights(path: Path) -> dict[str, Tensor]:
    """Weights, which ship compressed."""
    return load_file(path) if path.exists() else load(gzip.decompress(Path(f"{path}.gz").read_bytes()))


@dataclass(frozen=True)
class RecordedNoise:
    """Hands out what was recorded; rows there are ordered by image, then by place."""

    io: dict[str, Tensor]
    batch_size: int

    def permutation(self, length: int) -> Tensor:
        return self.io["orders"]

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        noise = self.io[f"ar{stage:03}/noise_init"][None]
        if draws > 1:
            noise = torch.cat((noise, self.io[f"ar{stage:03}/noise_steps"][: draws - 1]))
        return noise.reshape(draws, self.batch_size, *shape).to(dtype)


@dataclass
class Report:
    """Largest relative error of each recorded output: `max |got - want| / max |want|`."""

    errors: dict[str, float] = field(default_factory=dict)

    def compare(self, name: str, got: Tensor, want: Tensor, gain: float = 1.0) -> None:
        """Compares an output; what recurs at every stage is kept under one name with its worst error.

        `gain` is how much of its rounding the computation itself multiplies, on any machine; the error is
        divided by it.
        """
        if got.shape != want.shape:
            raise AssertionError(f"{name} has shape {tuple(got.shape)}, recorded is {tuple(want.shape)}")
        got, want = got.detach().to(torch.float64), want.to(torch.float64)
        error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item() / gain
        # `max` would drop a NaN.
        known = self.errors.get(name, 0.0)
        self.errors[name] = error if not error <= known else known

    def compare_exactly(self, name: str, got: object, want: object) -> None:
        """Compares what has no rounding: masks, counts, budgets."""
        self.errors[name] = max(self.errors.get(name, 0.0), 0.0 if got == want else float("inf"))

    @property
    def worst(self) -> float:
        return max(self.errors.values(), key=lambda e: (e != e, e))

    @property
    def passes(self) -> bool:
        return all(error <= TOLERANCE for error in self.errors.values())


def compare_gradients(report: Report, model: nn.Module, io: dict[str, Tensor]) -> None:
    """Compares the recorded gradients, of embeddings only the recorded rows, and the norm over all parameters."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, want in io.items():
        if name.startswith("grad/"):
            got = gradients[name.removeprefix("grad/")]
            rows = io.get("grad_class_rows")
            report.compare("gradients", got if rows is None or got.shape == want.shape else got[rows], want)
    if "grad_norm_all" in io:
        norm = torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
        report.compare("gradient_norm", norm, io["grad_norm_all"])
