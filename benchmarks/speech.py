"""What the steps of VibeVoice's head cost, beside all else that a token of speech needs.

    python -m benchmarks.speech [--tokens 12] [--repeats 5] [--context 500] [--dtype float32]

Random weights in the sizes of the 1.5B model, batch 1, with guidance. One part is in memory at a time; the language
model needs 6 GB in float32. Times are those of this process, summed over its cores: give it one where others are busy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn
from transformers import AutoModel, DynamicCache, VibeVoiceConfig
from transformers.models.vibevoice.modeling_vibevoice import VibeVoiceDiffusionHead

from disa_framework import SamplingConfig
from disa_framework.integrations.transformers import AnnealedScheduler
from disa_framework.schedules import Constant, Linear
from disa_framework.solvers import DPMSolverPP, Linspace

QWEN = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
}  # fmt: skip
SCHEDULES = (Constant(20), Constant(10), Constant(5), Linear(10, 4))
PUBLISHED = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speech", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=12, help="that each schedule is timed for")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--context", type=int, default=500, help="tokens that the language model has seen")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args(args)
    config, dtype = VibeVoiceConfig(text_config=QWEN), getattr(torch, options.dtype)
    with torch.inference_mode():
        steps = language_steps(config, dtype, options)
        audio = audio_steps(config, dtype, options)
        drawn = head_times(config, dtype, options)
    other = statistics.median(steps) + statistics.median(audio)
    print(f"\nlanguage model, both branches: {shown(steps)} ms; audio decoder and encoder: {shown(audio)} ms\n")
    print("| schedule | steps a token | head, ms a token | whole token, ms | share of the head |")
    print("|---|---|---|---|---|")
    for name, (count, times) in drawn.items():
        whole = other + statistics.median(times)
        print(f"| {name} | {count:.1f} | {shown(times)} | {whole:.0f} | {1 - other / whole:.0%} |")


def language_steps(config: Any, dtype: torch.dtype, options: argparse.Namespace) -> list[float]:
    """Of a token, conditional and unconditional, each with a cache of its own; the latter has seen speech alone."""
    with made(lambda: AutoModel.from_config(config.text_config), "language model", dtype) as model:
        caches = [DynamicCache(config=config.text_config) for _ in range(2)]
        for cache, length in zip(caches, (options.context, options.context // 2), strict=True):
            model(inputs_embeds=torch.randn(1, length, 1536, dtype=dtype), past_key_values=cache)
        x = torch.randn(1, 1, 1536, dtype=dtype)

        def step() -> None:
            for cache in caches:
                model(inputs_embeds=x, past_key_values=cache)

        return timed([step], options.repeats)[0]


def audio_steps(config: Any, dtype: torch.dtype, options: argparse.Namespace) -> list[float]:
    """Of a token: its sound, and the semantic encoder's view of that."""
    with (
        made(lambda: AutoModel.from_config(config.audio_config), "acoustic tokenizer", dtype) as acoustic,
        made(lambda: AutoModel.from_config(config.semantic_model_config), "semantic encoder", dtype) as semantic,
    ):
        latent, caches = torch.randn(1, 1, config.audio_config.hidden_size, dtype=dtype), [None, None]

        def step() -> None:
            sound = acoustic.decode(latent, padding_cache=caches[0], use_cache=True)
            heard = semantic(sound.audio, padding_cache=caches[1], use_cache=True)
            caches[:] = sound.padding_cache, heard.padding_cache

        return timed([step], options.repeats)[0]


def head_times(config: Any, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, tuple[float, list[float]]]:
    """Steps and times of a token, for each schedule and for the scheduler that VibeVoice comes with."""
    with made(lambda: VibeVoiceDiffusionHead(config.diffusion_head_config), "head", dtype) as head:
        solver, K = DPMSolverPP(grid=Linspace()), options.tokens
        ours = [AnnealedScheduler(SamplingConfig(schedule, solver, K)) for schedule in SCHEDULES]
        theirs: Any = DPMSolverMultistepScheduler(**PUBLISHED)
        schedulers = {**{str(s.sampling.schedule): s for s in ours}, "diffusers, 10 steps": theirs}
        runs = [lambda s=scheduler: phrase(head, s, dtype, K) for scheduler in schedulers.values()]
        times = [[spent / K for spent in times] for times in timed(runs, options.repeats)]
        counts = [sum(record.steps for record in s.records) / K for s in ours] + [10.0]
        return dict(zip(schedulers, zip(counts, times, strict=True), strict=True))


def phrase(head: nn.Module, scheduler: Any, dtype: torch.dtype, tokens: int) -> None:
    """Draws tokens as `generate` does."""
    latent, z = torch.randn(2, 64, dtype=dtype), torch.randn(2, 1536, dtype=dtype)
    len(scheduler.timesteps)  # it looks whether there are any
    for _ in range(tokens):
        x = latent
        scheduler.set_timesteps(num_inference_steps=10)
        for t in scheduler.timesteps:
            cond, uncond = head(torch.cat((x[:1], x[:1])), t.repeat(2).to(x), condition=z).chunk(2)
            out = uncond + 1.3 * (cond - uncond)
            x = scheduler.step(torch.cat((out, out)), t, x).prev_sample


@contextmanager
def made(make: Callable[[], Any], name: str, dtype: torch.dtype) -> Iterator[Any]:
    """A network, for as long as it is needed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = make().eval()
    finally:
        torch.set_default_dtype(before)
    print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:,.1f} million parameters", flush=True)
    yield model


def timed(runs: Sequence[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Milliseconds `[run][repeat]`, taken in turn, after one that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(1 + repeats):
        for run, kept in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            kept.append(1e3 * (time.process_time() - start))
    return [kept[1:] for kept in times]


def shown(times: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(times):.0f} ({min(times):.0f} … {max(times):.0f})"


if __name__ == "__main__":
    main()
