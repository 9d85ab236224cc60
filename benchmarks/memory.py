"""Peak memory of sampling, against what has to be there: weights, cache, and the activations of one stage.

    python -m benchmarks.memory [--models mar_base xar_base] [--batch_size 4] [--keep]

Random weights, guided, as many stages as published, few steps. Each figure is the peak of the resident memory of a
process of its own, less what it held before the model was made. What one stage needs is measured by stopping a run
after its second stage, the first that is guided; the cache is counted, and is there in full from the start. A ratio
near 1 says that nothing grows from stage to stage.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, PhiloxNoise, SamplingConfig, StageRecord, generate, models
from disa_framework.models import ARDiffusionModel
from disa_framework.nn.attention import KVCache
from disa_framework.runtime.memory import keep_freed_memory
from disa_framework.schedules import Linear
from disa_framework.solvers import DDPM, Euler, Spaced, VPCosine

_MIB = 2**20
_RUNS = ("weights", "one stage", "whole run")


class _StopError(Exception):
    """A run has been stopped."""


class _AfterSecondStage(Observer):
    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        if record.stage == 1:
            raise _StopError


def measure(name: str, batch_size: int, run: str) -> dict[str, float]:
    """Weights, cache and peak in MiB of one kind of run, in this process."""
    before = _peak()
    model: ARDiffusionModel = getattr(models, name)().eval()
    if run != "weights":
        with suppress(_StopError):
            generate(
                model, torch.arange(batch_size), _sampling(model),
                observers=[_AfterSecondStage()] if run == "one stage" else [],
            )  # fmt: skip
    return {"peak": _peak() - before, "cache": _cache(model, batch_size) / _MIB}


def _sampling(model: ARDiffusionModel) -> SamplingConfig:
    solver = DDPM(Spaced(clip=950)) if isinstance(model.process, VPCosine) else Euler()
    return model.settle(SamplingConfig(Linear(4, 2), solver, min(64, model.max_stages), Guidance(3.0)))


def _cache(model: ARDiffusionModel, batch_size: int) -> int:
    """Bytes of the keys and values that a guided run allocates."""
    with torch.inference_mode():
        state = model.begin(torch.arange(batch_size), _sampling(model), PhiloxNoise(0, torch.arange(batch_size)))
    caches: list[KVCache] = getattr(state, "caches", [])
    return sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mar_base", "xar_base"], help="published sizes")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="freed memory stays with the process, as in the commands")
    parser.add_argument("--run", choices=_RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.keep:
        keep_freed_memory()
    if options.run:
        print(json.dumps(measure(options.models[0], options.batch_size, options.run)))
        return
    print("| model | weights | cache | one stage | whole run, in all | whole run / (weights + cache + one stage) |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        found = {run: _in_its_own_process(name, run, options) for run in _RUNS}
        weights, stage, whole = (found[run]["peak"] for run in _RUNS)
        cache = found["weights"]["cache"]
        sizes = (weights, cache, max(0.0, stage - weights - cache), whole)
        cells = [name, *(f"{mib:,.0f} MiB" for mib in sizes), f"{whole / stage:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def _in_its_own_process(name: str, run: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--models", name, "--batch_size", str(options.batch_size)]
    command += ["--keep"] * options.keep
    return json.loads(subprocess.run([*command, "--run", run], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
