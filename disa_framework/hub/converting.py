"""Weights of any layout into one file that says what it holds: what `disa-convert` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from disa_framework.hub.checkpoint import check_process, misfit, read_checkpoint, write_checkpoint
from disa_framework.hub.loading import blank, recognize
from disa_framework.hub.published import PUBLISHED
from disa_framework.hub.reading import Weights


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        name: of the published model that was recognized, if any.
        report: what was found and written, in words, a line for each.
    """

    name: str | None
    report: str


def convert(
    source: str | Path,
    target: str | Path,
    model: Mapping[str, Any] | None = None,
    network: nn.Module | None = None,
    vae: str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Converts a file or a folder.

    Args:
        source: anything that `read_checkpoint` reads.
        target: the `.safetensors` file to write.
        model: `class_path` and `init_args` of a model that neither is a published one nor says itself what it is.
        network: that model, where its arguments are no plain values; it may lie on the meta device.
        vae: where to write an autoencoder that lies in the same file, as Harmon's may.
        overwrite: replace files that are there.

    Raises:
        ValueError: the source is damaged, of an unknown kind or does not fit the model; a target that cannot be.
        OSError: there is no source, or a target cannot be written.
    """
    for path in (target, vae):
        if path:
            _check_target(Path(path), overwrite)
    checkpoint = read_checkpoint(source)
    if vae and not checkpoint.autoencoder:
        raise ValueError(f"there is no KL autoencoder in {source}: leave --vae out")
    described, name = model or checkpoint.model, None
    lines = [f"{source}: {checkpoint.layout}"]
    if described is None:
        name = recognize(checkpoint.weights, source)
        described = PUBLISHED[name].model_with(checkpoint.options)
        lines.append(f"{name}: {PUBLISHED[name].description}")
    check_process(described["init_args"], checkpoint.options, source)
    lines.append(_write(source, Path(target), checkpoint.weights, described, network))
    if vae:
        lines.append(_write(source, Path(vae), checkpoint.autoencoder, PUBLISHED["kl16"].model))
    elif checkpoint.autoencoder:
        lines.append(f"left out: the autoencoder, {len(checkpoint.autoencoder)} tensors (write it with --vae)")
    return Conversion(name, "\n".join(lines))


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"what is written is a .safetensors file, not {path}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another name, or --overwrite")


def _write(
    source: str | Path, target: Path, weights: Weights, model: Mapping[str, Any], network: nn.Module | None = None
) -> str:
    """Writes weights, if they fit the described model, and says what they are."""
    network = blank(model["class_path"], model["init_args"]) if network is None else network
    if problems := misfit(network.state_dict(), weights):
        raise ValueError(f"{source} does not fit {model['class_path']}: {problems}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(target, weights, model)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()})
    return (
        f"{target}: {model['class_path']}, {millions:.1f} million parameters in {len(weights)} tensors, "
        f"{' and '.join(kinds)} as they were"
    )
