"""Folders that `diffusers` wrote, of a NOVA: what lies beside the weights of the transformer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disa_framework.models.nova import ProcessName
from disa_framework.solvers.base import Solver
from disa_framework.solvers.ddpm import DDPM
from disa_framework.solvers.flow import Euler
from disa_framework.solvers.grid import Leading
from disa_framework.solvers.spacing import Shift

FOLDER = "transformer"
"""Name of the folder with the weights."""

_LEAST_SIGMA = 1e-3  # of 1000 timesteps
_DDPM = {
    "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon",
    "variance_type": "fixed_small", "timestep_spacing": "leading", "clip_sample": False,
}  # fmt: skip


@dataclass(frozen=True)
class Scheduled:
    """What a scheduler says.

    Attributes:
        process: how the head was trained.
        solver: draws as the published code does.
    """

    process: ProcessName
    solver: Solver


def beside(weights: Path) -> tuple[dict[str, Any], Solver] | None:
    """Arguments of the model whose weights lie in a file of such a folder, and how it is drawn; None of other files.

    Raises:
        ValueError: the scheduler or the transformer is of another kind.
    """
    described, scheduler = weights.parent / "config.json", weights.parent.parent / "scheduler/scheduler_config.json"
    if weights.parent.name != FOLDER or not (described.is_file() and scheduler.is_file()):
        return None
    config, scheduled = _read(described), scheduled_by(_read(scheduler))
    height, width = config.get("image_size", (1024, 1024))
    if height != width or config.get("rotary_pos_embed"):
        raise ValueError(
            f"{described} is of a NOVA of videos, or of images that are no squares: it draws squares alone"
        )
    return {"process": scheduled.process, "image_size": height}, scheduled.solver


def scheduled_by(scheduler: Mapping[str, Any]) -> Scheduled:
    """What a scheduler's file says.

    Raises:
        ValueError: it is of another kind.
    """
    kind, shift = scheduler.get("_class_name"), scheduler.get("shift", 1.0)
    if kind == "FlowMatchEulerDiscreteScheduler":
        # It shifts its least sigma when it is made, and once more with all others.
        least = _shifted(_shifted(_LEAST_SIGMA, shift), shift)
        return Scheduled("flow", Euler(Shift(shift=shift, least=least)))
    differing = {name: scheduler[name] for name, value in _DDPM.items() if scheduler.get(name, value) != value}
    if kind == "DDPMScheduler" and not differing:
        return Scheduled("cosine", DDPM(Leading(scheduler.get("steps_offset", 0)), variance="small"))
    options = ", ".join(f"{name} {value}" for name, value in _DDPM.items())
    raise ValueError(
        f"the scheduler is {kind} {differing or ''}: known are FlowMatchEulerDiscreteScheduler, and DDPMScheduler with "
        f"{options}"
    )


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no JSON of a network or a scheduler: {error}") from error
