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
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.models import PUBLISHED, Published, filled
from disa_framework import PhiloxNoise, generate
from disa_framework.models.base import ARDiffusionModel
from disa_framework.runtime.compiling import compile_regions, missing_for_compilation
from disa_framework.runtime.devices import wait_for
from disa_framework.sampling.generation import advance, sample_stage
from disa_framework.schedules import PerStage

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


class Timed:
    """A system on a device, in one precision, and how many samples are drawn at once."""

    def __init__(self, published: Published, model: ARDiffusionModel, batch_size: int) -> None:
        self.published, self.model, self.batch_size = published, model, batch_size
        self.sampling = model.settle(published.sampling)
        self.condition = torch.arange(batch_size) % model.num_classes

    # --- whole images ---------------------------------------------------------------------------------------

    def images(self, graphs: bool) -> dict[str, Any]:
        """Seconds an image as published and annealed, with and without CUDA graphs, and the annealed one's parts."""
        from disa_framework.measure import measure_latency
        from disa_framework.module import ARDiffusionModule

        module, device = ARDiffusionModule(self.model, self.sampling, graphs=graphs), self.model.device
        published = replace(self.sampling, schedule=self.published.constant)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        asked = module, self.condition, self.batch_size
        constant, annealed = measure_latency(*asked, [published, self.sampling], repeats=2 if graphs else 1)
        found: dict[str, Any] = {"constant, s": short(constant), "annealed, s": short(annealed)}
        found["faster by annealing"] = short(constant / annealed)
        if device.type == "cuda":
            found["peak, MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
            found["kept, MiB"] = round(torch.cuda.memory_reserved(device) / 2**20)
        return {**found, **self._as_without(module)} if graphs and self.batch_size < 8 else found

    def parts(self) -> dict[str, Any]:
        """Seconds an image, annealed, as the parts tell that a graph's events have timed."""
        from disa_framework.measure import measure_cost
        from disa_framework.module import ARDiffusionModule

        budgets = [(steps,) * self.sampling.stages for steps in (3, 9)]
        module = ARDiffusionModule(self.model, self.sampling)
        cost = measure_cost(module, self.condition, self.batch_size, budgets=budgets, repeats=2)
        figures = {"backbone": sum(cost.backbone), "before and after": cost.fixed, "in all": cost(self.sampling.budget)}
        return {f"{name}, s": short(seconds) for name, seconds in figures.items()}

    def _as_without(self, module: Any) -> dict[str, Any]:
        """Whether a graph draws to the bit what is drawn without."""
        for start in (0, 7, 11):
            drawn = module.draw(self.condition, torch.arange(self.batch_size) + start)
        plain = generate(self.model, self.condition, self.sampling, indices=torch.arange(self.batch_size) + 11)
        replayed = module.replaying.graph is not None or self.model.device.type != "cuda"
        return {"apart": relative(drawn, plain), "ok": replayed and relative(drawn, plain) < 1e-3}

    def beside_plain(self) -> dict[str, Any]:
        """Seconds of a batch of few stages and steps, by `generate` and by the plain sampler, and how far apart."""
        stages = min(self.sampling.stages, 8)
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
        return found

    def _middle(self) -> tuple[Any, int, PhiloxNoise]:
        """The state before a stage in the middle, that stage, and where its noise comes from."""
        model, sampling = self.model, self.sampling
        source, stage = PhiloxNoise(0, torch.arange(self.batch_size), model.device), sampling.stages // 2
        state = model.begin(self.condition.to(model.device), sampling, source)
        return advance(model, state, range(stage), lambda *_: 2, sampling.solver, source), stage, source

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


def speed(name: str, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is found of a published system, the most telling first; of a tiny one on the CPU."""
    dry = device.type == "cpu"
    published = PUBLISHED[name].dry() if dry else PUBLISHED[name]
    model = filled(published.make()).requires_grad_(False)

    def found(kind: Callable[[Timed], Any], dtype: torch.dtype, batch_size: int) -> Callable[[], Any]:
        return lambda: kind(Timed(published, model.to(device, dtype), batch_size))

    one, many = (2, 3) if dry else (1, 64)
    full, half = torch.float32, torch.bfloat16
    plain, graphed = partial(Timed.images, graphs=False), partial(Timed.images, graphs=True)
    compiled = partial(_compiled, dry=dry)
    yield "as on the CPU", lambda: _as_on_the_cpu(Timed(published, model, 2), device)
    for what, kind, dtype, batch_size in (
        ("graphs", graphed, half, one),
        ("graphs", graphed, half, many),
        ("graphs, compiled", compiled, half, many),
        ("parts", Timed.parts, half, one),
        ("without graphs", plain, half, one),
        ("without graphs", plain, half, many),
        ("graphs, compiled", compiled, half, one),
        ("a stage", Timed.stage, half, one),
        ("graphs", graphed, full, one),
        ("beside plain", Timed.beside_plain, full, one),
        ("graphs", graphed, full, many),
        ("without graphs", plain, full, one),
    ):
        if not dry or batch_size == one:
            yield f"{dtype}, batch {batch_size}, {what}", found(kind, dtype, batch_size)


def _as_on_the_cpu(timed: Timed, device: torch.device) -> dict[str, Any]:
    """How far few stages and steps are from what the CPU draws, in float32."""
    model, stages = timed.model, max(timed.model.min_stages, min(4, timed.sampling.stages))
    sampling = replace(timed.sampling, schedule=PerStage((2,) * stages), num_stages=stages)
    expected = generate(model, timed.condition, sampling)
    apart = relative(generate(model.to(device), timed.condition, sampling).cpu(), expected)
    return {"stages": stages, "apart": apart, "ok": apart < 1e-3}


def _compiled(timed: Timed, dry: bool) -> dict[str, Any]:
    """As `images` with graphs, by PyTorch's compiler, and how long that took with compiling."""
    if lack := missing_for_compilation():
        return {"skipped": lack}
    torch.compiler.reset()
    timed.model = copy.deepcopy(timed.model)  # which stays compiled
    compile_regions(timed.model, backend="eager" if dry else "inductor")
    start = time.perf_counter()
    return {**timed.images(graphs=True), "all with compiling, s": short(time.perf_counter() - start)}


def relative(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are apart at most, in shares of the largest number."""
    return short(((found - expected).abs().max() / expected.abs().max()).item())


def short(number: float) -> float:
    """Three digits of it."""
    return float(f"{number:.3g}")
