"""The parts, each in a process of its own, which tells the one that began it of each finding by a line of JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.models import COUNT, Tiny, families, fitting
from disa_framework import PhiloxNoise, SamplingConfig, generate
from disa_framework.runtime.compiling import missing_for_compilation
from disa_framework.runtime.devices import name_of
from disa_framework.sampling.noise import philox, philox_factors

Finding = tuple[str, Callable[[], Any]]
"""Its name, and what finds it: anything JSON can hold, whose `ok` is false if it is not as it should be."""

EXACT = 1e-3
"""How far float32 may be apart, relative to the largest number."""
ROUGH = 0.05
"""How much farther bfloat16 may be off on the device than on the CPU, as a share of the norm."""

_OPTIONAL = (
    "lightning", "torchmetrics", "safetensors", "transformers", "triton", "flash_attn", "jsonargparse", "optuna",
    "diffusers", "torch_fidelity", "sklearn", "matplotlib", "pytest",
)  # fmt: skip


def environment(device: torch.device) -> Iterator[Finding]:
    """What there is."""
    yield (
        "versions",
        lambda: {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
    )
    yield "device", lambda: {"name": name_of(device), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    yield "packages", lambda: {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL}
    yield "compiler", lambda: missing_for_compilation() or "there"
    if device.type == "cuda":
        yield "card", _card


def _card() -> dict[str, Any]:
    """Of the first GPU."""
    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which(asked[0]) else None
    return {
        "capability": torch.cuda.get_device_capability(0), "GiB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False), "driver, watts, MHz": told,
    }  # fmt: skip


def agreement(device: torch.device) -> Iterator[Finding]:
    """Whether it draws what the CPU draws, from the same seed: every family with every solver that fits."""
    yield "noise", lambda: _same_noise(device)
    for name, tiny in families().items():
        yield name, partial(_agree, tiny, device)


def _same_noise(device: torch.device) -> dict[str, Any]:
    """Philox's bits, what is made of them, and orders."""
    words = torch.arange(2 * 4096).view(2, -1) * 104729 % 2**32
    factors = philox_factors(2**40 + 3)
    pairs = zip(philox(words, words, factors), philox(*(x.to(device) for x in (words, words, factors))), strict=True)
    here, there = (PhiloxNoise(5, torch.arange(4), where) for where in ("cpu", device))
    apart = (here.normal(1, (7, 5), 3) - there.normal(1, (7, 5), 3).cpu()).abs().max().item()
    bits = all(torch.equal(a, b.cpu()) for a, b in pairs)
    orders = torch.equal(here.permutation(256), there.permutation(256).cpu())
    return {"bits": bits, "orders": orders, "normals apart": apart, "ok": bits and orders and apart < 1e-5}


def _agree(tiny: Tiny, device: torch.device) -> dict[str, Any]:
    """How far drawn latents are apart with each solver, in float32 from the CPU's, and in bfloat16 from float32."""
    found: dict[str, Any] = {}
    for solver in fitting(tiny.make()):
        sampling = replace(tiny.sampling, solver=solver)
        expected = _draw(tiny, sampling, torch.device("cpu"), torch.float32)
        apart = (_draw(tiny, sampling, device, torch.float32) - expected).abs().max() / expected.abs().max()
        half, here = (
            ((_draw(tiny, sampling, where, torch.bfloat16) - expected).norm() / expected.norm()).item()
            for where in (device, torch.device("cpu"))
        )
        ok = apart.item() < EXACT and half < ROUGH + 2 * here
        figures = {"float32": apart.item(), "bfloat16": half, "bfloat16 on the CPU": here}
        found[repr(solver)] = {**{name: float(f"{x:.2g}") for name, x in figures.items()}, "ok": ok}
    return {**found, "ok": all(of["ok"] for of in found.values())}


def _draw(tiny: Tiny, sampling: SamplingConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    model = tiny.make().to(device, dtype)
    return generate(model, tiny.condition, sampling, seed=3).float().cpu()


def waiting(device: torch.device) -> Iterator[Finding]:
    """Whether the host waits for the device from the second batch on, which PyTorch then refuses."""
    for name, tiny in families().items():
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{name}, {dtype}", partial(_draw_twice, tiny, device, dtype)


def _draw_twice(tiny: Tiny, device: torch.device, dtype: torch.dtype) -> str:
    model = tiny.make().to(device, dtype)
    generate(model, tiny.condition, tiny.sampling, seed=1)
    with _refusing_to_wait(device):
        generate(model, tiny.condition, tiny.sampling, seed=2)
    return "never"


@contextmanager
def _refusing_to_wait(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def distributed(device: torch.device) -> Iterator[Finding]:
    """Whether Lightning's predict loop draws the same with and without its distributed strategy."""
    yield "ddp", lambda: _predict(device, "ddp", "32-true")
    yield "ddp in bf16", lambda: _predict(device, "ddp", "bf16-true")


def _predict(device: torch.device, strategy: str, precision: str) -> dict[str, Any]:
    from lightning import Trainer

    from disa_framework.data.requests import RequestData
    from disa_framework.module import ARDiffusionModule

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    tiny = families()["MAR"]

    def drawn(strategy: str) -> Tensor:
        options: dict[str, Any] = {
            "accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1, "strategy": strategy,
            "precision": precision, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        }  # fmt: skip
        module, data = ARDiffusionModule(tiny.make(), tiny.sampling), RequestData(COUNT, tiny.condition, 2)
        batches: Any = Trainer(**options).predict(module, data)
        return torch.cat(batches).float().cpu()

    apart = (drawn(strategy) - drawn("auto")).abs().max().item()
    return {"apart": apart, "ok": apart == 0}


def tests(device: torch.device) -> Iterator[Finding]:
    """The tests that need a GPU; they have `cuda` in their names."""
    yield "skipped without CUDA", _run_tests


def _run_tests() -> dict[str, Any]:
    if not importlib.util.find_spec("pytest"):
        return {"skipped": "pytest is not installed"}
    files = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if "cuda.is_available" in path.read_text()]
    options = ["-k", "cuda", "-rfE", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *files], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    left_out = [line for line in lines if line.startswith("ERROR")]  # whose packages are missing
    failed = [line for line in lines if line.startswith("FAILED")]
    return {"result": lines[-1], "left out": left_out, **({"error": "\n".join(lines[-40:])} if failed else {})}


def main(args: Sequence[str] | None = None) -> None:
    """Finds one part's findings, also after one that fails."""
    from benchmarks.gpu.speed import speed

    parts: dict[str, Callable[[torch.device], Iterator[Finding]]] = {
        part.__name__: part for part in (environment, agreement, waiting, distributed, tests)
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("findings", type=int, help="file descriptor that they are written to")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(args)
    device = torch.device("cpu" if options.dry else "cuda")
    torch.set_float32_matmul_precision("highest")  # without TF32
    if options.dry:
        torch.set_num_threads(1)
    part = parts[options.name](device) if options.name in parts else speed(options.name, device)
    with open(options.findings, "w") as findings:
        for name, find in part:
            try:
                value = find()
            except Exception:
                value = {"error": traceback.format_exc(limit=-8)}
            print(json.dumps([name, value]), file=findings, flush=True)


if __name__ == "__main__":
    main()
