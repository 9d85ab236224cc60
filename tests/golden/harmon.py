"""Replays of Harmon and of UniPic-1: sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from disa_framework import Guidance, SamplingConfig, StageRecord, generate
from disa_framework.models import Harmon
from disa_framework.models.harmon import Qwen2
from disa_framework.nn.tokens import patchify
from disa_framework.solvers import Solver
from tests.golden.case import Case, RecordedNoise, Report
from tests.golden.mar import RAMP, Watcher, mar_of, schedule_of, solver_of


class RecordedPrompts(Harmon):
    """Reads the recorded prompts, by their number; the last row is the null prompt."""

    io: dict[str, Tensor]

    def tokenize(self, prompts: Sequence[str | None]) -> list[list[int]]:
        rows = [-1 if prompt is None else int(prompt) for prompt in prompts]
        return [self.io["input_ids"][row][self.io["attention_mask"][row].bool()].tolist() for row in rows]


def build(case: Case) -> RecordedPrompts:
    """The model of a case, with its weights."""
    arguments = {name: value for name, value in case.info["mar_kwargs"].items() if name not in RAMP}
    if "max_beta" in case.info:  # of UniPic-1
        arguments["max_beta"] = case.info["max_beta"]
    size = Qwen2(**{field.name: case.info["llm_config"][field.name] for field in fields(Qwen2)})
    shape = case.info["sampling"]["image_shape"]
    model = RecordedPrompts(
        mar_of(arguments, case.info["norm_eps"]),
        size,
        image_size=shape and (16 * shape[0], 16 * shape[1]),
        attn_implementation="eager",
    )
    model.io = case.io
    model.load_state_dict(case.weights)
    return model.eval()


class LanguageWatcher(Watcher):
    """Also compares what passes through the language model."""

    def __init__(self, model: Harmon, solver: Solver, case: Case, report: Report) -> None:
        super().__init__(model.mar, solver, case, report)
        self.read: dict[str, Tensor] = {}
        model.llm.model.register_forward_hook(self._language, with_kwargs=True)
        model.mar.encoder_norm.register_forward_hook(lambda _, __, out: self.read.update(mae_enc=out))
        model.mar.decoder_embed.register_forward_hook(lambda _, args, __: self.read.update(x_enc=args[0]))

    def _language(self, _: object, __: object, given: dict[str, Any], out: Any) -> None:
        if "input_ids" in given:
            self.report.compare("prompt_hidden", out.last_hidden_state, self.case.io["prompt_hidden"])
        else:
            self.read |= {
                "llm_in": given["inputs_embeds"],
                "llm_out": out.last_hidden_state,
                "position_ids": given["position_ids"],
            }

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        super().accepted(record, tokens)
        # The published code runs the encoder on alike rows for both branches.
        rows = self.case.info["batch_rows"]
        self.read["mae_enc"] = self.read["mae_enc"].repeat(rows // len(tokens), 1, 1)
        for name, value in self.read.items():
            self._compare(record.stage, name, value)


def replay(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise."""
    options, sampling, images = case.info["mar_kwargs"], case.info["sampling"], case.info["images"]
    model, report = build(case), Report()
    sampler = "DiSA" if RAMP[0] in options else "default"  # the latter of UniPic-1
    ramp = [options.get(name, case.info.get("num_sampling_steps")) for name in RAMP]
    solver, schedule = solver_of(sampler, sampling["temperature"]), schedule_of(sampler, ramp[0], *map(int, ramp[1:]))
    latents = generate(
        model,
        [str(row) for row in range(images)],
        SamplingConfig(
            schedule,
            solver,
            sampling["num_iter"],
            Guidance(sampling["cfg"], sampling["cfg_schedule"]),
        ),
        noise=RecordedNoise(case.io, images),
        observers=[LanguageWatcher(model, solver, case, report)],
    )
    report.compare("tokens", patchify(latents, 1), case.io["tokens"])
    report.compare("latents", latents, case.info["vae_scale"] * case.io["vae_input"])
    return report
