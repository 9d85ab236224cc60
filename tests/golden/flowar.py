"""Replays of FlowAR: sampling and training loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import FlowAR
from disa_framework.models.base import Proposal
from disa_framework.models.flowar import TrainingDraws
from disa_framework.schedules import Linear
from disa_framework.solvers import Euler, Halves
from tests.golden.case import Case, RecordedNoise, Report, compare_gradients


def build(case: Case) -> FlowAR:
    """The model of a case, with its weights."""
    k = case.info["model_kwargs"]
    model = FlowAR(
        latent_size=k["img_size"] // k["vae_stride"],
        latent_channels=k["vae_embed_dim"],
        num_classes=k["class_num"],
        scales=k["scale"],
        width=k["encoder_embed_dim"],
        encoder_depth=k["encoder_depth"],
        encoder_heads=k["encoder_num_heads"],
        decoder_depth=k["decoder_depth"],
        decoder_heads=k["decoder_num_heads"],
        head_depth=k["diffloss_d"],
        head_width=k["diffloss_w"],
        cross_attention=k["cross"],
        mlp_ratio=k["mlp_ratio"],
        label_dropout=k["label_drop_prob"],
    )
    model.load_state_dict(case.weights)
    return model.eval()


class Watcher(Observer):
    """Compares every stage with the record, from what passes through the head."""

    def __init__(self, model: FlowAR, case: Case, report: Report) -> None:
        self.model, self.case, self.report = model, case, report
        self.stage: dict[str, Any] = {}
        net = model.flownet
        net.register_forward_hook(self._head)
        net.time_embed.register_forward_hook(lambda _, args, __: self.stage.update(times=args[0]))

    def _head(self, _: object, args: tuple[Any, ...], out: Tensor) -> None:
        self.stage["x"].append(args[0])
        self.stage["out"].append(out)

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.report.compare_exactly("requested_steps", steps, self.case.info["per_step"][stage]["requested_steps"])
        self.stage = {"x": [], "out": [], "z": proposal.z}

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        B, k, step = len(tokens), record.stage, self.case.info["per_step"][record.stage]
        self.report.compare_exactly("evaluations", len(self.stage["x"]), step["num_network_evals"])
        self.report.compare_exactly("times", self.stage["times"].tolist(), step["net_timesteps"])
        guided = [len(x) == 2 * B for x in self.stage["x"]]
        self.report.compare_exactly("guided_steps", guided, step["cfg_active"])
        z = self.stage["z"]
        self._compare(k, "z", z[:B])
        self._compare(k, "z_uncond", z[B:])
        self._compare(k, "trace_x", torch.stack([x[:B] for x in self.stage["x"]]))
        self._compare(k, "sampled", tokens)
        if f"ar{k:03}/trace_net_out" in self.case.io:
            want = self.case.io[f"ar{k:03}/trace_net_out"]
            for i, out in enumerate(self.stage["out"]):
                self.report.compare("trace_net_out", out[:B], want[i][:B])
        if k < self.model.max_stages - 1:
            self._compare(k, "next_input", self.model.next_input(tokens, k))

    def _compare(self, stage: int, name: str, got: Tensor) -> None:
        want = self.case.io.get(f"ar{stage:03}/{name}")
        if want is not None and len(got):
            self.report.compare(name, got.reshape(want.shape), want)


def replay_sampling(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise."""
    options, model, report = case.info["sampling"], build(case), Report()
    latents = generate(
        model,
        case.io["labels"],
        SamplingConfig(
            Linear(options["flow_upper_steps"], options["flow_lower_steps"]),
            Euler(Halves()),
            guidance=Guidance(options["cfg"], interval=(0.0, options["guidance"])),
        ),
        noise=RecordedNoise(case.io, len(case.io["labels"])),
        observers=[Watcher(model, case, report)],
    )
    report.compare("latents", latents, case.io["latents"])
    return report


def replay_training(case: Case) -> Report:
    """Evaluates the training loss and its gradients on the recorded draws."""
    io, model, report = case.io, build(case).train(), Report()
    stages = range(model.max_stages)
    draws = TrainingDraws(
        io["drop_uniform"] < model.label_dropout,
        torch.stack([io[f"scale{k}/t"].flatten() for k in stages]),
        [io[f"scale{k}/noise"] for k in stages],
    )
    targets = model.targets(io["imgs"])
    seen = [model.next_input(tokens, k) for k, tokens in enumerate(targets[:-1])]
    report.compare("teacher_input", torch.cat(seen, dim=1), io["teacher_input"])
    z = model.condition_all(targets, io["labels"], draws.dropped)
    report.compare("z", z, io["z"])
    for k, loss in enumerate(model.scale_losses(targets, z, draws)):
        report.compare("scale_loss", loss, io[f"scale{k}/loss"])
    loss = model.losses(io["imgs"], io["labels"], draws=draws).total
    report.compare("loss", loss, io["loss"])
    loss.backward()
    compare_gradients(report, model, io)
    return report
