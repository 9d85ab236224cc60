"""Replays of NOVA: sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.hub.diffusers import scheduled_by
from disa_framework.models import NOVA
from disa_framework.models.base import Proposal
from disa_framework.sampling.stage_sizes import ListedSizes
from disa_framework.schedules import Constant
from tests.golden.case import Case, RecordedNoise, Report


class RecordedTexts(NOVA):
    """Reads the recorded states of texts, by their number; those of no text, behind them, are not alike."""

    texts: Tensor

    def check_condition(self, condition: Any) -> None:
        pass

    def states(self, prompts: Sequence[str]) -> Tensor:
        known, nothing = self.texts.chunk(2)
        return nothing if prompts == [""] else known[[int(prompt) for prompt in prompts]]


def build(case: Case) -> RecordedTexts:
    """The model of a case, with its weights."""
    published, heads = case.info["config"], 2
    (text_depth, width), (image_depth, _), (head_depth, head_width) = (
        map(int, size.split("_d")[1].split("w")) for size in published["arch"]
    )
    model = RecordedTexts(
        published["image_size"][0] // published["image_stride"], published["image_dim"],
        width=width, heads=heads, text_depth=text_depth, image_depth=image_depth, head_depth=head_depth,
        head_width=head_width, text_width=published["text_token_dim"], text_length=published["text_token_len"],
        process=scheduled_by(scheduler(case)).process,
    )  # fmt: skip
    model.load_state_dict({"text_embed.weight": model.text_embed.weight, **case.weights})
    model.texts = case.io["text"]
    return model.eval()


def scheduler(case: Case) -> dict[str, Any]:
    """That of a case, as a file of diffusers has it."""
    return {"_class_name": case.info["scheduler"]["cls"], **case.info["scheduler"]}


class Recorded(RecordedNoise):
    """Rows there are in the order in which tokens were drawn, not in raster order."""

    def permutation(self, length: int) -> Tensor:
        return self.io["order_uniform"].argsort(dim=1).flip(1)

    def rows(self, stage: int, recorded: Tensor) -> Tensor:
        """`[…, B n, D]` in raster order, of `[…, B n, D]` as recorded."""
        order = self.io[f"ar{stage:03}/pred_ids"].argsort(dim=1)
        images = torch.arange(len(order))[:, None] * order.shape[1]
        return recorded[..., (images + order).flatten(), :]

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        noise = super().normal(stage, shape, draws, dtype).flatten(1, 2)
        return self.rows(stage, noise).reshape(draws, self.batch_size, *shape)


class Watcher(Observer):
    """Compares every stage with the record, from what passes through the networks."""

    def __init__(self, model: RecordedTexts, noise: Recorded, case: Case, report: Report) -> None:
        self.case, self.noise, self.report = case, noise, report
        self.heads: list[Tensor] = []
        self.times = torch.empty(0)
        self.read: dict[str, list[Tensor]] = {"text_embedded": [], "condition": []}
        model.text_embed.register_forward_hook(lambda _, __, out: self.read["text_embedded"].append(out))
        model.video_encoder.norm.register_forward_hook(lambda _, __, out: self.read["condition"].append(out))
        head = model.image_decoder
        head.register_forward_hook(lambda _, args, __: self.heads.append(args[0]))
        self.embed = head.time_cond_embed.time
        head.time_cond_embed.time = self._time  # type: ignore[method-assign]

    def _time(self, t: Tensor) -> Tensor:
        self.times = t
        return self.embed(t)

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        for name, parts in self.read.items():
            self.report.compare(name, torch.cat(parts), self.case.io[name])
        places = self.case.io[f"ar{stage:03}/pred_ids"].sort(dim=1).values
        self.report.compare_exactly("places", torch.equal(proposal.places[0], places), True)
        self.heads, self.z = [], proposal.z

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        step, B = self.case.info["per_step"][record.stage], len(tokens)
        self.report.compare_exactly("evaluations", [len(x) for x in self.heads], step["rows_per_evaluation"])
        self.report.compare("times", self.times, torch.tensor(step["net_timesteps"]))
        assert self.z is not None
        self._compare(record.stage, "z", self.z[:B].flatten(0, 1))
        self._compare(record.stage, "z_uncond", self.z[B:].flatten(0, 1))
        self._compare(record.stage, "trace_x", torch.stack([x[:B].flatten(0, 1) for x in self.heads]))
        self._compare(record.stage, "sampled", tokens.flatten(0, 1))

    def _compare(self, stage: int, name: str, got: Tensor) -> None:
        want = self.case.io.get(f"ar{stage:03}/{name}")
        if want is not None:
            self.report.compare(name, got, self.noise.rows(stage, want))


def guidance_of(sampling: dict[str, Any]) -> Guidance:
    """Ours for the published options."""
    scale, start = sampling["guidance_scale"], sampling.get("min_guidance_scale")
    least = sampling.get("guidance_trunc", 0) / 1000
    return Guidance(scale, "linear", (least, 1.0), start=start or scale)


def replay(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise, orders and states of texts."""
    sampling, stages = case.info["sampling"], case.info["per_step"]
    B, sizes = case.info["batch"], tuple(step["predicted_per_image"] for step in stages)
    model, report, noise = build(case), Report(), Recorded(case.io, B)
    if len(stages) == sampling["num_inference_steps"]:  # no stage of the published code was empty
        report.compare_exactly("sizes", model.layout.sizes.sizes(model.num_tokens, len(stages)), sizes)
    latents = generate(
        model,
        [str(row) for row in range(B)],
        SamplingConfig(
            Constant(sampling["num_diffusion_steps"]), scheduled_by(scheduler(case)).solver,
            guidance=guidance_of(sampling), stage_sizes=ListedSizes(sizes),
        ),
        noise=noise,
        observers=[Watcher(model, noise, case, report)],
    )  # fmt: skip
    report.compare("latents", latents, case.io["latents"])
    return report
