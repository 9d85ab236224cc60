"""Seconds, launches and memory of a published system with random weights, and what makes them less."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.models import PUBLISHED, Published, filled
from disa_framework import PhiloxNoise, SamplingConfig, generate
from disa_framework.models.base import ARDiffusionModel, Delegating, Proposal
from disa_framework.runtime.compiling import compile_regions, missing_for_compilation
from disa_framework.runtime.devices import wait_for
from disa_framework.sampling.generation import advance, sample_stage
from disa_framework.schedules import PerStage

_FITTED = (2, 6)
"""Steps at every stage of the two runs whose times give those of a stage and of an evaluation."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


class Spread(Delegating):
    """Some stages of a model, evenly spread over all, each of which is drawn as if the others had been."""

    def __init__(self, model: ARDiffusionModel, sampling: SamplingConfig, count: int) -> None:
        super().__init__(model)
        self.inner = model.settle(sampling)
        self.every = self.inner.stages // count
        self.min_stages = self.max_stages = count

    def begin(self, condition: Any, sampling: SamplingConfig, noise: Any) -> Any:
        return self.watched.begin(condition, replace(sampling, num_stages=self.inner.stages), noise)

    def propose(self, state: Any, stage: int) -> Proposal:
        return self.watched.propose(state, stage * self.every + self.every // 2)


class Timed:
    """A system on a device, in one precision, and how many samples are drawn at once."""

    def __init__(self, published: Published, model: ARDiffusionModel, batch_size: int) -> None:
        self.published, self.model, self.batch_size = published, model, batch_size
        self.sampling = model.settle(published.sampling)
        self.condition = torch.arange(batch_size) % model.num_classes

    # --- whole images ---------------------------------------------------------------------------------------

    def cost(self) -> dict[str, Any]:
        """Seconds an image as published and annealed, from runs of few steps, and what they are made of."""
        from disa_framework.measure import measure_cost
        from disa_framework.module import ARDiffusionModule

        K = self.sampling.stages
        count = min(K, self.published.timed_stages or K)
        model = self.model if count == K else Spread(self.model, self.sampling, count)
        module = ARDiffusionModule(model, replace(self.sampling, num_stages=count))
        budgets = [(steps,) * count for steps in _FITTED]
        device = self.model.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        repeats = 3 if self.batch_size == 1 else 1
        cost = measure_cost(module, self.condition, self.batch_size, budgets=budgets, repeats=repeats)
        found: dict[str, Any] = {"stages timed": count, "of": K, "steps timed": _FITTED}
        for name, schedule in (("constant", self.published.constant), ("annealed", self.sampling.schedule)):
            budget = schedule.budget(K)[K // count // 2 :: K // count]
            stages = sum(costs[0] for costs in (cost.stage_costs([steps])[k] for k, steps in enumerate(budget)))
            found[f"{name}, s"] = short(cost.fixed + stages * K / count)
        found["backbone, s"] = short(sum(cost.backbone) * K / count)
        found["faster by annealing"] = short(found["constant, s"] / found["annealed, s"])
        if device.type == "cuda":
            found["peak, MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        return found

    def beside_plain(self) -> dict[str, Any]:
        """Seconds of a batch of few stages and steps, by `generate` and by the plain sampler, and how far apart."""
        stages = min(self.sampling.stages, self.published.timed_stages or self.sampling.stages)
        sampling = replace(self.sampling, schedule=PerStage((4,) * stages), num_stages=stages)
        labels = self.condition.to(self.model.device)
        noise = PhiloxNoise(0, torch.arange(self.batch_size), self.model.device)

        def ours() -> Tensor:
            return generate(self.model, self.condition, sampling, noise=noise)

        def plain() -> Tensor:
            return self.published.plain(self.model, labels, sampling.budget, sampling.solver, sampling.guidance, noise)

        apart = relative(ours(), plain())
        seconds, others = (self._seconds(draw, 2) for draw in (ours, plain))
        figures = {"stages": stages, "generate, s": seconds, "plain, s": others, "ratio": short(seconds / others)}
        return {**figures, "apart": apart, "ok": apart < 0.01}

    # --- one stage ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def stage(self) -> dict[str, Any]:
        """Seconds and launches of backbone and evaluation at a stage in the middle, and seconds as one CUDA graph."""
        state, stage, source = self._middle()
        proposal = self.model.propose(state, stage)
        solver, process = self.sampling.solver, self.model.process
        steps = self.sampling.budget[stage]
        step = proposal.denoise(solver.table(process, steps).nodes)
        x = torch.randn(self.batch_size, *proposal.shape, device=self.model.device, dtype=self.model.dtype)
        parts: dict[str, Callable[[], object]] = {
            "backbone": lambda: self.model.propose(state, stage),
            "evaluation": lambda: step(x, 0),
            f"stage of {steps} steps": lambda: sample_stage(self.model, proposal, stage, steps, solver, source),
        }
        found: dict[str, Any] = {}
        for name, run in parts.items():
            found[f"{name}, s"] = self._seconds(run, 3)
            if not name.startswith("stage"):
                found[f"{name}, launches"] = self._launches(run)
            if self.model.device.type == "cuda":
                found[f"{name} as a graph, s"] = self._graphed(run)
        return found

    @torch.inference_mode()
    def attention(self) -> dict[str, Any]:
        """Seconds of the backbone and one evaluation at a stage in the middle, with each of PyTorch's back ends."""
        state, stage, _ = self._middle()
        found: dict[str, Any] = {}
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            with sdpa_kernel(getattr(SDPBackend, name)):
                try:
                    found[name] = self._seconds(partial(self._once, state, stage), 3)
                except RuntimeError as error:  # it does not compute this
                    found[name] = str(error).splitlines()[0]
        return found

    def _once(self, state: Any, stage: int) -> Tensor:
        proposal = self.model.propose(state, stage)
        x = torch.zeros(self.batch_size, *proposal.shape, device=self.model.device, dtype=self.model.dtype)
        return proposal.denoise(self.sampling.solver.table(self.model.process, 4).nodes)(x, 0)

    def _middle(self) -> tuple[Any, int, PhiloxNoise]:
        """The state before a stage in the middle, that stage, and where its noise comes from."""
        model, sampling = self.model, self.sampling
        source, stage = PhiloxNoise(0, torch.arange(self.batch_size), model.device), sampling.stages // 2
        state = model.begin(self.condition.to(model.device), sampling, source)
        if self.published.timed_stages is None:  # otherwise a stage needs no earlier one
            state = advance(model, state, range(stage), lambda *_: 2, sampling.solver, source)
        return state, stage, source

    def _seconds(self, run: Callable[[], object], repeats: int) -> float:
        """The least of some runs, after one that warms up."""
        seconds = []
        for _ in range(1 + repeats):
            wait_for(self.model.device)
            start = time.perf_counter()
            run()
            wait_for(self.model.device)
            seconds.append(time.perf_counter() - start)
        return short(min(seconds[1:]))

    def _launches(self, run: Callable[[], object]) -> int:
        """Kernels that the host starts; operations, where there is no GPU."""
        cuda = self.model.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
            run()
            wait_for(self.model.device)
        names = _LAUNCHES if cuda else ("aten::",)
        return sum(event.count for event in profiler.key_averages() if event.key.startswith(names))

    def _graphed(self, run: Callable[[], object]) -> float | str:
        """Seconds of a run that was recorded as one CUDA graph, by PyTorch's own means."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return self._seconds(graph.replay, 5)


def speed(name: str, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is found of a published system, the most telling first; of a tiny one on the CPU."""
    published, dry = PUBLISHED[name], device.type == "cpu"
    model = filled(published.tiny() if dry else published.make()).requires_grad_(False)

    def found(kind: Callable[[Timed], Any], dtype: torch.dtype, batch_size: int) -> Callable[[], Any]:
        return lambda: kind(Timed(published, model.to(device, dtype), batch_size))

    one, many = (2, 3) if dry else (1, 64)
    full, half = torch.float32, torch.bfloat16
    compiled, replayed = (partial(_compiled, mode=mode, dry=dry) for mode in (None, "reduce-overhead"))
    yield "as on the CPU", lambda: _as_on_the_cpu(Timed(published, model, 2), device)
    for what, kind, dtype, batch_size in (
        ("", Timed.cost, half, one),
        (", a stage", Timed.stage, half, one),
        ("", Timed.cost, half, many),
        (", a stage", Timed.stage, half, many),
        ("", Timed.cost, full, one),
        (", beside plain", Timed.beside_plain, full, one),
        (", compiled", compiled, half, one),
        (", reduce-overhead", replayed, half, one),
        (", compiled", compiled, half, many),
        ("", Timed.cost, full, many),
        (", attention", Timed.attention, half, many),
        (", a stage", Timed.stage, full, many),
        (", beside plain", Timed.beside_plain, full, many),
    ):
        if not dry or batch_size == one:
            yield f"{dtype}, batch {batch_size}{what}", found(kind, dtype, batch_size)


def _as_on_the_cpu(timed: Timed, device: torch.device) -> dict[str, Any]:
    """How far few stages and steps are from what the CPU draws, in float32."""
    model, stages = timed.model, max(timed.model.min_stages, min(4, timed.sampling.stages))
    sampling = replace(timed.sampling, schedule=PerStage((2,) * stages), num_stages=stages)
    expected = generate(model, timed.condition, sampling)
    apart = relative(generate(model.to(device), timed.condition, sampling).cpu(), expected)
    return {"stages": stages, "apart": apart, "ok": apart < 1e-3}


def _compiled(timed: Timed, mode: str | None, dry: bool) -> dict[str, Any]:
    """As `cost` and `stage`, by PyTorch's compiler, and how long the former took with compiling."""
    if lack := missing_for_compilation():
        return {"skipped": lack}
    torch.compiler.reset()
    timed.model = copy.deepcopy(timed.model)  # which stays compiled
    compile_regions(timed.model, backend="eager" if dry else "inductor", mode=None if dry else mode)
    start = time.perf_counter()
    found = {**timed.cost(), "with compiling, s": short(time.perf_counter() - start)}
    return {**found, **(timed.stage() if mode is None else {})}  # what is replayed cannot be recorded again


def relative(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are apart at most, in shares of the largest number."""
    return short(((found - expected).abs().max() / expected.abs().max()).item())


def short(number: float) -> float:
    """Three digits of it."""
    return float(f"{number:.3g}")
