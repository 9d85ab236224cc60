"""Replay of the KL autoencoder."""

from __future__ import annotations

from torch import Tensor

from disa_framework.hub.checkpoint import apply_weights
from disa_framework.tokenizers import Autoencoder
from disa_framework.tokenizers.autoencoder import posterior, sample_posterior
from tests.golden.case import Case, Report


def build(case: Case) -> Autoencoder:
    """The autoencoder of a case, with its weights."""
    options = case.info["autoencoder_kwargs"]
    autoencoder = Autoencoder(
        channels=options["encoder_decoder"]["ch"],
        multipliers=options["ch_mult"],
        blocks=options["encoder_decoder"]["num_res_blocks"],
        latent_channels=options["embed_dim"],
        scale=case.info["scale_factor"],
    )
    apply_weights(autoencoder.network, case.weights, "weights.safetensors")
    return autoencoder


def replay(case: Case) -> Report:
    """Encodes and decodes the case's images."""
    io, report, autoencoder = case.io, Report(), build(case)
    moments = autoencoder.moments(io["image"])
    mean, log_variance = posterior(moments)
    latents = sample_posterior(moments, io["posterior_noise"], autoencoder.scale)
    report.compare_exactly("factor", autoencoder.factor, case.info["downsample_factor"])
    report.compare("moments", moments, io["moments"])
    report.compare("mean", autoencoder.eval().encode(io["image"]) / autoencoder.scale, io["mean"])
    report.compare("logvar", log_variance, io["logvar"])
    report.compare("latents", latents / autoencoder.scale, io["sample"])
    report.compare("kl", kl(mean, log_variance), io["kl"])
    report.compare("decoded_from_sample", autoencoder.decode(latents), io["decoded_from_sample"])
    report.compare("decoded_latents", autoencoder.decode(io["latents"]), io["decoded_latents"])

    alone = io["gauss_parameters"]
    report.compare("gauss_sample", sample_posterior(alone, io["gauss_noise"], scale=1.0), io["gauss_sample"])
    report.compare("gauss_logvar", posterior(alone)[1], io["gauss_logvar"])
    report.compare("gauss_kl", kl(*posterior(alone)), io["gauss_kl"])
    return report


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence `[B]` of Gaussians from the standard one."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=(1, 2, 3))
