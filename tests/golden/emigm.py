"""Replays of eMIGM: sampling and training loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import EMIGM
from disa_framework.models.base import Proposal
from disa_framework.models.emigm import masked_share
from disa_framework.models.mar import TrainingDraws
from disa_framework.nn.tokens import patchify
from disa_framework.sampling.stage_sizes import ListedSizes
from disa_framework.schedules import Constant
from disa_framework.solvers import LogSNR, SinglestepDPMSolverPP
from tests.golden.case import Case, RecordedNoise, Report, compare_gradients
from tests.golden.mar import arguments_of

SOLVER = SinglestepDPMSolverPP(3, LogSNR(0.995, 0.0, to_clean=False), 1000 / 996)
_OTHERS = ("use_unsup_cfg", "mask_strategy", "clamp_t_min")
"""Published arguments that are no options of ours."""


def build(case: Case) -> EMIGM:
    """The model of a case, with its weights."""
    published = {name: value for name, value in case.info["model_kwargs"].items() if name not in _OTHERS}
    model = EMIGM(norm_eps=case.info["norm_eps"], **arguments_of(published))
    model.load_state_dict(case.weights)
    return model.eval()


def guidance_of(published: dict[str, Any], guided: list[bool]) -> Guidance:
    """Ours at the stages that the record says are guided."""
    if not any(guided):
        return Guidance()
    K, first = len(guided), guided.index(True)
    count = sum(guided)
    assert all(guided[first : first + count])
    stages = max(0.0, (first + 0.5) / K), min(1.0, (first + count + 0.5) / K)
    return Guidance(published["cfg"], published["cfg_schedule"], stages=stages)


class Watcher(Observer):
    """Compares every stage with the record."""

    def __init__(self, model: EMIGM, case: Case, report: Report) -> None:
        self.case, self.report = case, report
        self.times = torch.empty(0)
        self.masked = torch.ones_like(case.io["orders"], dtype=torch.uint8)
        net = model.diffloss.net
        net.register_forward_hook(lambda _, args, out: self.calls.append((args[0], out)))
        net.time_embed.register_forward_hook(lambda _, args, __: setattr(self, "times", args[0]))

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        drawn = torch.zeros_like(self.masked).scatter_(1, proposal.places[0], 1)
        for name, got in (("mask_in", self.masked), ("mask_to_pred", drawn)):
            self.report.compare_exactly(name, torch.equal(got, self.case.io[f"ar{stage:03}/{name}"]), True)
        self.masked = self.masked - drawn
        self.calls: list[tuple[Tensor, Tensor]] = []
        assert proposal.z is not None
        self.z = proposal.z

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        B, step = len(tokens), self.case.info["per_step"][record.stage]
        self.report.compare_exactly("evaluations", len(self.calls), step["num_diffusion_steps"])
        self.report.compare_exactly("guided", len(self.z) > B, step["guided"])
        self.report.compare("times", self.times, torch.tensor(step["net_timesteps"]))
        # Recorded from the run with tables in float32, whose tokens are up to a thousandth off.
        gain = 10.0 if record.stage else 1.0
        self._compare(record.stage, "z", self.z[:B].flatten(0, 1), gain)
        self._compare(record.stage, "z_uncond", self.z[B:].flatten(0, 1), gain)
        self._compare(record.stage, "sampled_f64", tokens.flatten(0, 1))

    def _compare(self, stage: int, name: str, got: Tensor, gain: float = 1.0) -> None:
        want = self.case.io.get(f"ar{stage:03}/{name}")
        if want is not None and len(got):
            self.report.compare(name, got, want, gain)


def replay_sampling(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise, orders and stage sizes. Ours are tables in float64: they
    are compared with the recorded run whose tables are, too."""
    sampling, stages = case.info["sampling"], case.info["per_step"]
    model, report = build(case), Report()
    per_image = [step["tokens_predicted"] // sampling["bsz"] for step in stages]
    config = SamplingConfig(
        Constant(int(sampling["num_sampling_steps"])),
        SOLVER,
        guidance=guidance_of(sampling, [step["guided"] for step in stages]),
        stage_sizes=ListedSizes(tuple(per_image)),
    )
    latents = generate(
        model,
        case.io.get("labels"),
        config,
        batch_size=sampling["bsz"],
        noise=RecordedNoise(case.io, sampling["bsz"]),
        observers=[Watcher(model, case, report)],
    )
    report.compare("latents", latents, case.io["latents_f64"])
    return report


def replay_training(case: Case) -> Report:
    """Evaluates the training loss and its gradients on the recorded draws."""
    io, info = case.io, case.info
    model, report = build(case).train(), Report()
    tokens = patchify(io["imgs"], model.patch_size)
    (B, N, D), R = tokens.shape, model.diffusion_batch_mul
    share = masked_share(0.999 * max(io["t_uniform"][-1].item(), info["model_kwargs"]["clamp_t_min"]) + 0.001)
    mask = (io["mask_uniform"][-1] < share)[io["permutations"]]
    report.compare_exactly("mask", torch.equal(mask.to(io["mask"]), io["mask"]), True)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    m, rows = int(mask[0].sum()), order[:, : int(mask[0].sum())].expand(R, -1, -1)
    timesteps, noise = io["timesteps"].view(R, B, N), io["noise"].view(R, B, N, D)
    draws = TrainingDraws(
        order, m, io["drop_mask"].bool(),
        (timesteps.gather(2, rows), noise.gather(2, rows[..., None].expand(-1, -1, -1, D))),
    )  # fmt: skip
    embedding = torch.where(draws.dropped[:, None], model.fake_latent.expand(B, -1), model.class_emb(io["labels"]))
    z = model.backbone(tokens, embedding, order[:, m:], torch.arange(N).expand(B, -1))
    squared, bound = model.diffloss(tokens.expand(R, -1, -1, -1), z.expand(R, -1, -1, -1), timesteps, noise)
    report.compare("z", z, io["z"])
    report.compare("loss_per_token", (squared + bound).flatten(), io["loss_per_token"])
    loss = model.losses(io["imgs"], io["labels"], draws=draws).total
    report.compare("loss", loss, io["loss"])
    loss.backward()
    compare_gradients(report, model, io)
    return report
