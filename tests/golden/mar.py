"""Replays of MAR: sampling and training loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import MAR
from disa_framework.models.base import Proposal
from disa_framework.models.mar import TrainingDraws
from disa_framework.nn.tokens import patchify
from disa_framework.schedules import Constant, Cosine, Linear, StepSchedule, TwoStage
from disa_framework.solvers import DDIM, DDPM, DPMSolver, DPMSolverPP, Solver, Spaced, Strided, UniformTime
from tests.golden.case import Case, RecordedNoise, Report, compare_gradients

_RENAMED = {
    "vae_embed_dim": "latent_channels",
    "class_num": "num_classes",
    "encoder_embed_dim": "encoder_width",
    "encoder_num_heads": "encoder_heads",
    "decoder_embed_dim": "decoder_width",
    "decoder_num_heads": "decoder_heads",
    "diffloss_d": "head_depth",
    "diffloss_w": "head_width",
    "label_drop_prob": "label_dropout",
}
RAMP = ("diff_annealing_strategy", "diff_upper_steps", "diff_lower_steps")
"""Published options that make a schedule."""


def arguments_of(published: dict[str, Any]) -> dict[str, Any]:
    """Ours, by their names, for the published ones."""
    arguments = {_RENAMED.get(name, name): value for name, value in published.items()}
    arguments["latent_size"] = arguments.pop("img_size") // arguments.pop("vae_stride")
    return arguments


def mar_of(published: dict[str, Any], norm_eps: float) -> MAR:
    """Our MAR for the published arguments."""
    return MAR(norm_eps=norm_eps, **arguments_of(published))


def build(case: Case) -> MAR:
    """The model of a case, with its weights."""
    model = mar_of(case.info["model_kwargs"], case.info["norm_eps"])
    model.load_state_dict(case.weights)
    return model.eval()


def solver_of(sampler: str, temperature: float) -> Solver:
    """Our solver for a published sampler's name."""
    return {
        "DiSA": DDPM(Spaced(clip=950), temperature=temperature),
        "default": DDPM(Spaced(), temperature=temperature),
        "DDIM": DDIM(Strided(clip=980)),
        "DPM_Solver": DPMSolver(1, UniformTime(clip=950)),
        "DPM_Solver++": DPMSolverPP(1, UniformTime(clip=950)),
    }[sampler]


def schedule_of(sampler: str, strategy: str, upper: int, lower: int) -> StepSchedule:
    """Our schedule for the published options."""
    if sampler == "default":
        return Constant(upper)
    if strategy == "constant":
        return Constant(lower)
    ramps = {"linear": Linear(upper, lower), "cosine": Cosine(upper, lower), "two-stage": TwoStage(upper, lower)}
    return ramps[strategy]


class Watcher(Observer):
    """Compares every stage with the record, from what passes through the head."""

    def __init__(self, mar: MAR, solver: Solver, case: Case, report: Report) -> None:
        self.process, self.solver, self.case, self.report = mar.process, solver, case, report
        self.masked = torch.ones_like(case.io["orders"], dtype=torch.uint8)
        self.stage: dict[str, Any] = {}
        net = mar.diffloss.net
        net.register_forward_hook(self._head)
        net.time_embed.register_forward_hook(lambda _, args, __: self.stage.update(times=args[0]))

    def _head(self, _: object, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.stage["x"].append(args[0])
        self.stage["out"].append(out)

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        io, step = self.case.io, self.case.info["per_step"][stage]
        drawn = torch.zeros_like(self.masked).scatter_(1, proposal.places[0], 1)
        self._exact("mask_in", self.masked, io[f"ar{stage:03}/mask_in"])
        self._exact("mask_to_pred", drawn, io[f"ar{stage:03}/mask_to_pred"])
        self.report.compare_exactly("requested_steps", steps, step["requested_diffusion_steps"])
        self.masked = self.masked - drawn
        self.stage = {"x": [], "out": [], "z": proposal.z}

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        B, step = len(tokens), self.case.info["per_step"][record.stage]
        self.report.compare_exactly("evaluations", len(self.stage["x"]), step["num_diffusion_steps"])
        self.report.compare("times", self.stage["times"], torch.tensor(step["net_timesteps"]))
        z = self.stage["z"]
        self._compare(record.stage, "z", z[:B].flatten(0, 1))
        self._compare(record.stage, "z_uncond", z[B:].flatten(0, 1))
        # From t = 999, where alpha is 5e-5, one step multiplies the head's rounding by several hundred.
        rows = self.solver.table(self.process, record.steps).rows
        gain = max(1.0, *(abs(row.B * row.Q) for row in rows))
        states = [x[:B].flatten(0, 1) for x in self.stage["x"]]
        outs = [out.flatten(0, 1) for out in self.stage["out"]]
        self._compare(record.stage, "trace_x", torch.stack(states), gain)
        self._compare(record.stage, "trace_net_out", torch.stack(outs), gain)
        self._compare(record.stage, "sampled", tokens.flatten(0, 1))

    def _compare(self, stage: int, name: str, got: Tensor, gain: float = 1.0) -> None:
        want = self.case.io.get(f"ar{stage:03}/{name}")
        # Solvers that the published code does not guide still record the unguided branch's rows.
        if want is not None and len(got):
            self.report.compare(name, got, want, gain)

    def _exact(self, name: str, got: Tensor, want: Tensor) -> None:
        self.report.compare_exactly(name, torch.equal(got, want), True)


def replay_sampling(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise."""
    options, sampling = case.info["diffusion_sampler"], case.info["sampling"]
    sampler = options["diff_sampler"]
    guided = not sampler.startswith("DPM")  # there the published code ignores the scale
    model, report = build(case), Report()
    solver = solver_of(sampler, sampling["temperature"])
    latents = generate(
        model,
        case.io.get("labels") if sampling["class_conditional"] else None,
        SamplingConfig(
            schedule_of(sampler, *(options[name] for name in RAMP)),
            solver,
            sampling["num_iter"],
            Guidance(sampling["cfg"], sampling["cfg_schedule"]) if guided else Guidance(),
        ),
        batch_size=sampling["bsz"],
        noise=RecordedNoise(case.io, sampling["bsz"]),
        observers=[Watcher(model, solver, case, report)],
    )
    report.compare("tokens", patchify(latents, model.patch_size), case.io["tokens"])
    report.compare("latents", latents, case.io["latents"])
    return report


def replay_training(case: Case) -> Report:
    """Evaluates the training loss and its gradients on the recorded draws."""
    io, info = case.io, case.info
    model, report = build(case).train(), Report()
    tokens = patchify(io["imgs"], model.patch_size)
    (B, N, D), R = tokens.shape, model.diffusion_batch_mul
    masked = io["orders"][:, : info["num_masked"]]
    dropped = io["drop_uniform"] < model.label_dropout
    timesteps, noise = io["timesteps"].view(R, B, N), io["noise"].view(R, B, N, D)
    rows = masked.expand(R, -1, -1)
    draws = TrainingDraws(
        io["orders"],
        info["num_masked"],
        dropped,
        (timesteps.gather(2, rows), noise.gather(2, rows[..., None].expand(-1, -1, -1, D))),
    )
    labels = io.get("labels")
    report.compare("mask", torch.zeros_like(io["mask"]).scatter(1, masked, 1), io["mask"])

    # The record holds z and losses of all tokens, of which training needs the masked ones.
    every = torch.arange(N).expand(B, -1)
    null = model.fake_latent.expand(B, -1)
    embedding = null if labels is None else torch.where(dropped[:, None], null, model.class_emb(labels))
    z = model.backbone(tokens, embedding, io["orders"][:, info["num_masked"] :], every)
    squared, bound = model.diffloss(tokens.expand(R, -1, -1, -1), z.expand(R, -1, -1, -1), timesteps, noise)
    report.compare("z", z, io["z"])
    report.compare("mse_per_token", squared.flatten(), io["mse_per_token"])
    report.compare("vb_per_token", bound.flatten(), io["vb_per_token"])
    report.compare("loss_per_token", (squared + bound).flatten(), io["loss_per_token"])

    loss = model.losses(io["imgs"], labels, draws=draws).total
    report.compare("loss", loss, io["loss"])
    loss.backward()
    compare_gradients(report, model, io)
    return report
