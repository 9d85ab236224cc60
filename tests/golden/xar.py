"""Replays of xAR: sampling and training loss."""

from __future__ import annotations

from torch import Tensor

from disa_framework import Guidance, Observer, SamplingConfig, StageRecord, generate
from disa_framework.models import XAR
from disa_framework.models.base import Proposal
from disa_framework.models.xar import TrainingDraws
from disa_framework.schedules import Linear
from disa_framework.solvers import Euler, EulerMaruyama
from tests.golden.case import Case, RecordedNoise, Report, compare_gradients

_SOLVERS = {"euler": Euler(), "euler_maruyama": EulerMaruyama()}


def build(case: Case) -> XAR:
    """The model of a case, with its weights."""
    k = case.info["model_kwargs"]
    model = XAR(
        latent_size=k["img_size"] // k["vae_stride"],
        latent_channels=k["vae_embed_dim"],
        num_classes=k["class_num"],
        cells_per_side=round(k["clusters"] ** 0.5),
        width=k["encoder_embed_dim"],
        encoder_depth=k["encoder_depth"],
        encoder_heads=k["encoder_num_heads"],
        decoder_depth=k["decoder_depth"],
        decoder_heads=k["decoder_num_heads"],
        mlp_ratio=k["mlp_ratio"],
        label_dropout=k["label_drop_prob"],
    )
    model.load_state_dict(case.weights)
    return model.eval()


class Watcher(Observer):
    """Compares every stage with the record, from what passes through the backbone."""

    def __init__(self, model: XAR, case: Case, report: Report) -> None:
        self.case, self.report = case, report
        self.stage: dict[str, list[Tensor]] = {"x": [], "v": [], "t": []}
        model.z_proj.register_forward_hook(lambda _, args, __: self.stage["x"].append(args[0]))
        model.pred.register_forward_hook(lambda _, __, out: self.stage["v"].append(out))
        model.time_embed.register_forward_hook(lambda _, args, __: self.stage["t"].append(args[0]))

    def proposed(self, stage: int, proposal: Proposal, steps: int) -> None:
        self.report.compare_exactly("requested_steps", steps, self.case.info["per_step"][stage]["num_steps"])
        # The cell before has been seen at t = 0 once, and nothing else has been computed.
        seen = [t.tolist() for t in self.stage["t"]]
        self.report.compare_exactly("cache_pass", (len(self.stage["v"]), seen), (1, [0.0]) if stage else (0, []))
        self.stage = {"x": [], "v": [], "t": []}

    def accepted(self, record: StageRecord, tokens: Tensor) -> None:
        step, io, B = self.case.info["per_step"][record.stage], self.case.io, len(tokens)
        x, v = self.stage["x"], self.stage["v"]
        self.report.compare_exactly("evaluations", len(v), step["num_network_evals"])
        self.report.compare_exactly("times", self.stage["t"][0].tolist(), step["net_timesteps"])
        guided = step["cfg_scale"] != 1.0
        self.report.compare_exactly("guided", {len(rows) for rows in v}, {2 * B if guided else B})
        prefix = f"ar{record.stage:03}"
        seen = {"v_first": v[0], "v_second": v[min(1, len(v) - 1)], "v_last": v[-1]}
        seen |= {"x_second": x[min(1, len(x) - 1)][:B], "x_last": x[-1][:B]}
        for name, got in seen.items():
            # Where guidance is off, the record's unguided half is not computed here.
            if f"{prefix}/{name}" in io:
                self.report.compare(name, got, io[f"{prefix}/{name}"][: len(got)])
        self.report.compare("sampled", tokens, io[f"{prefix}/sampled"])
        self.stage = {"x": [], "v": [], "t": []}


def replay_sampling(case: Case) -> Report:
    """Draws the case's images again, from its recorded noise."""
    options, model, report = case.info["sampling"], build(case), Report()
    latents = generate(
        model,
        case.io["labels"],
        SamplingConfig(
            Linear(options["flow_upper_steps"], options["flow_lower_steps"]),
            _SOLVERS[options["sampler"]],
            guidance=Guidance(options["cfg"]),
        ),
        noise=RecordedNoise(case.io, len(case.io["labels"])),
        observers=[Watcher(model, case, report)],
    )
    report.compare("latents", latents, case.io["latents"])
    return report


def replay_training(case: Case) -> Report:
    """Evaluates the training loss and its gradients on the recorded draws."""
    io, model, report = case.io, build(case).train(), Report()
    times = io["time_normals"].sigmoid().float()
    report.compare("times", times, io["t"])
    draws = TrainingDraws(
        io["drop_uniform"] < model.label_dropout,
        times.view(model.max_stages, -1).T,
        io["noise"].transpose(0, 1).flatten(1, 2),
    )
    clean = model.to_cells(io["imgs"])
    v = model.velocity_of_all(clean, io["labels"], draws)
    report.compare("velocity", v, io["velocity"])
    per_image = (v - model.process.target(clean, draws.noise)).square().mean(dim=(1, 2))
    report.compare("loss_per_image", per_image, io["loss_per_image"])
    loss = model.losses(io["imgs"], io["labels"], draws=draws).total
    report.compare("loss", loss, io["loss"])
    loss.backward()
    compare_gradients(report, model, io)
    return report
