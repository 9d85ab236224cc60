"""All that decides the samples beside model, condition and seed, as one value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from disa_framework import values
from disa_framework.files import write_atomically
from disa_framework.runtime.feature_cache import FeatureCache
from disa_framework.sampling.guidance import Guidance
from disa_framework.sampling.order import TokenOrder
from disa_framework.sampling.stage_sizes import StageSizes
from disa_framework.schedules.base import Budget, StepSchedule
from disa_framework.schedules.heuristic import Constant
from disa_framework.solvers.base import Solver
from disa_framework.solvers.ddpm import DDPM
from disa_framework.solvers.process import Process

_OPTIONAL: dict[str, type[Any]] = {"cache": FeatureCache, "order": TokenOrder, "stage_sizes": StageSizes}
_KINDS: dict[str, type[Any]] = {"schedule": StepSchedule, "solver": Solver, "guidance": Guidance, **_OPTIONAL}


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn. It is frozen and compares by value; a variation is `dataclasses.replace(sampling, …)`.

    Args:
        schedule: diffusion steps of each AR stage; 50 at every stage by default.
        solver: turns noise into tokens, along its grid of times; DDPM from timestep 950 by default.
        num_stages: AR stages of a sample; by default as many as stage sizes or solver are for, or the model can take.
        guidance: classifier-free guidance; none by default.
        cache: reuse of features between stages, which saves a masked model much of its backbone's time and changes what
            it draws a little; off by default. `Lazy` has options.
        order: which tokens of a masked model are drawn when; the model's own by default, MAR's is `RandomOrder`.
        stage_sizes: how many tokens of a masked model each stage draws; the model's own by default, MAR's are
            `CosineSizes`.
    """

    schedule: StepSchedule = Constant(50)
    solver: Solver = DDPM()
    num_stages: int | None = None
    guidance: Guidance = Guidance()
    cache: FeatureCache | None = None
    order: TokenOrder | None = field(default=None, metadata=values.LATER)
    stage_sizes: StageSizes | None = field(default=None, metadata=values.LATER)

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            part, optional = getattr(self, name), name in _OPTIONAL
            if not isinstance(part, kind) and not (optional and part is None):
                raise ValueError(f"{name} must be a {kind.__name__}{' or None' * optional}, got {part!r}")
        stages = self.num_stages
        whole = isinstance(stages, int) and not isinstance(stages, bool)
        if stages is not None and (not whole or not 1 <= stages <= values.MOST):
            raise ValueError(f"num_stages must be a whole number from 1 to {values.MOST:,}, got {stages!r}")
        for name, part in (("this solver is", self.solver), ("these stage sizes are", self.stage_sizes)):
            own = None if part is None else part.num_stages
            if None not in (stages, own) and stages != own:
                raise ValueError(f"{name} for {own} stages, got num_stages={stages}")

    @property
    def stages(self) -> int:
        """`K`, which is known once the config is that of a model, see `ARDiffusionModel.settle`.

        Raises:
            ValueError: if it is not.
        """
        if self.num_stages is None:
            raise ValueError("num_stages is the model's own here: give a number, or settle the config with the model")
        return self.num_stages

    @property
    def budget(self) -> Budget:
        """`T(0), …, T(K-1)`; of an adaptive schedule the most that there can be."""
        return self.schedule.budget(self.stages)

    def guidance_at(self, stage: int) -> Guidance:
        """The guidance of a stage: none where it does not act."""
        return self.guidance if self.guidance.acts_at(stage, self.stages) else Guidance()

    def branches_from(self, stage: int) -> int:
        """How many guidance branches a stage or a later one needs: those whose keys and values have to be kept."""
        later = range(stage, self.stages)
        return 2 if self.guidance.active and any(self.guidance.acts_at(k, self.stages) for k in later) else 1

    def evaluations(self, process: Process) -> int:
        """Head evaluations of a sample, at most.

        Raises:
            ValueError: if schedule, solver and process do not fit together.
        """
        return sum(self.solver.at(stage).evaluations(process, steps) for stage, steps in enumerate(self.budget))

    def dump(self) -> dict[str, Any]:
        """As plain data: equal for equal configs, and for no others."""
        return values.dump(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes YAML that `load` and `--sampling` read."""
        text = yaml.safe_dump(self.dump(), sort_keys=False, default_flow_style=None)
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SamplingConfig:
        """Reads what `save` wrote; fields that are not there have their defaults.

        Raises:
            FileNotFoundError: no such file.
            ValueError: if the file holds something else; the message says which file and why.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no sampling config at {path}: disa-search writes one, and SamplingConfig.save")
        try:
            return values.load(cls, yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} holds no sampling config ({', '.join(FIELDS)}): {reason}") from error


FIELDS = tuple(field.name for field in fields(SamplingConfig))
"""Names of its parts, which are options of the commands, too."""
