"""Replays of SphereAR: sampling and training loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import SphereAR
from disa_framework.models.base import Proposal
from disa_framework.models.sphere import TrainingDraws, on_sphere
from disa_framework.nn.tokens import unpatchify
from disa_framework.schedules import Constant
from disa_framework.solvers import EulerMaruyama
from tests.golden.case import Case, RecordedNoise, Report, compare_gradients

SOLVER = EulerMaruyama(final_step="flow")


@dataclass(frozen=True)
class BranchNoise(RecordedNoise):
    """Rows are ordered by branch, then by image, where each branch draws a token of its own."""

    def normal(self, stage: int, shape: Sequence[int], draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
        n, D = shape
        noise = super().normal(stage, (n * D,), draws, dtype)
        return noise.view(draws, n, self.batch_size, D).transpose(1, 2)


def build(case: Case) -> SphereAR:
    """The model of a case, with its weights."""
    k = case.info["model_kwargs"]
    model = SphereAR(
        latent_size=k["resolution"] // k["patch_size"],
        latent_channels=k["latent_dim"],
        num_classes=k["num_classes"],
        class_tokens=k["cls_token_num"],
        width=k["dim"],
        depth=k["n_layer"],
        heads=k["n_head"],
        head_depth=k["diff_layers"],
        head_width=k["diff_dim"],
        modulations=k["diff_adanln_layers"],
        label_dropout=case.info.get("class_dropout_prob", 0.1),
        diffusion_batch_mul=k["diff_batch_mul"],
    )
    model.load_state_dict(case.weights)
    return model.eval()


class Watcher(Observer):
    """Compares every stage with the record, from what passes through backbone and head."""

    def __init__(self, model: SphereAR, case: Case, report: Report) -> None:
        self.case, self.report = case, report
        self.seen: dict[str, list[Tensor]] = {"backbone_in": [], "times": [], "x": [], "out": []}
        net = model.head.net
        model.emb_norm.register_forward_hook(lambda _, args, __: self.seen["backbone_in"].append(args[0]))
        net.time_embed.register_forward_hook(lambda _, args, __: self.seen["times"].append(args[0] / 1000))
        net.input_proj.register_forward_hook(lambda _, args, __: self.seen["x"].append(args[0]))
        net.register_forward_hook(lambda _, __, out: self.seen["out"].append(out))

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        assert proposal.z is not None
        self.z = proposal.z

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        k, step, seen = record.stage, self.case.info["per_token"][record.stage], self.seen
        x, out, times = torch.stack(seen["x"]), torch.stack(seen["out"]), seen["times"][0]
        self.report.compare_exactly("evaluations", len(x), self.case.info["sampling"]["sample_steps"] + 1)
        self.report.compare_exactly("rows", x.shape[1] * x.shape[2], step["head_rows"])
        if "times" in step:
            self.report.compare("times", times, torch.tensor(step["times"]))
        self._compare(k, "backbone_in", seen["backbone_in"][0])
        self._compare(k, "z", _by_branch(self.z))
        self._compare(k, "trace_x", _by_branch(x)[:, : len(tokens) * tokens.shape[1]])
        self._compare(k, "trace_net_out", _by_branch(out))
        self._compare(k, "sampled_raw", _by_branch(tokens))
        self._compare(k, "sampled", _by_branch(on_sphere(tokens)))
        self.seen |= {name: [] for name in seen}

    def _compare(self, stage: int, name: str, got: Tensor) -> None:
        if (want := self.case.io.get(f"ar{stage:03}/{name}")) is not None:
            self.report.compare(name, got, want)


def _by_branch(x: Tensor) -> Tensor:
    """`[..., B, n, D] -> [..., n B, D]`: one row a token, those of a branch together."""
    return x.transpose(-3, -2).flatten(-3, -2)


def replay_sampling(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise."""
    options, model, report = case.info["sampling"], build(case), Report()
    labels = case.io["labels"]
    latents = generate(
        model,
        labels,
        SamplingConfig(
            Constant(options["sample_steps"] + 1), SOLVER, guidance=Guidance(options["cfg"], options["cfg_schedule"])
        ),
        noise=BranchNoise(case.io, len(labels)),
        observers=[Watcher(model, case, report)],
    )
    report.compare("latents", latents, unpatchify(case.io["tokens"], 1, *latents.shape[2:]))
    return report


def replay_training(case: Case) -> Report:
    """Evaluates the training loss and its gradients on the recorded draws."""
    io, model, report = case.io, build(case).train(), Report()
    tokens, shape = io["latents"], (model.diffusion_batch_mul, *io["latents"].shape)
    dropped = io["drop_uniform"] < model.label_dropout
    report.compare_exactly("dropped", torch.equal(dropped, io["drop_mask"].bool()), True)
    times, noise = 1 - io["time_normal"].sigmoid().view(shape[:3]), io["noise"].view(shape)
    z = model.condition_all(tokens, io["labels"], dropped)
    report.compare("z", z.flatten(0, 1), io["z"])
    velocity = model.head(tokens.expand(shape), z.expand(*shape[:3], -1), times, noise)
    report.compare("velocity", -velocity.flatten(0, 2), io["velocity"])
    latents = unpatchify(tokens, 1, *model.latent_shape[1:])
    loss = model.losses(latents, io["labels"], draws=TrainingDraws(dropped, times, noise)).total
    report.compare("loss", loss, io["loss"])
    loss.backward()
    compare_gradients(report, model, io)
    return report
