"""Models for others: a folder that `load_model` reads, and a repository of Hugging Face that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from disa_framework import values
from disa_framework.files import write_atomically
from disa_framework.hub.checkpoint import write_checkpoint
from disa_framework.hub.repository import library
from disa_framework.models.base import ARDiffusionModel
from disa_framework.sampling.config import SamplingConfig

SAMPLING = "sampling.yaml"
"""How a shared model is drawn with."""

_CARD = """---
library_name: disa_framework
tags: [autoregressive, diffusion, image-generation]
---

# {name}

A {kind} with {millions:.1f} million parameters, for the Python package `disa-framework`.
{about}
## Drawing

```python
import torch

from disa_framework import SamplingConfig, generate
from disa_framework.hub import load_model, repository

folder = repository("hf:{name}")
model = load_model(folder)
latents = generate(model, {condition}, SamplingConfig.load(folder / "{sampling}"), seed=0)  # {shape}
```

| | |
|---|---|
| schedule | `{schedule}` |
| solver | `{solver}` |
| stages | {stages} |
| head evaluations | {evaluations} |
"""


def save_pretrained(
    model: ARDiffusionModel,
    folder: str | Path,
    sampling: SamplingConfig = SamplingConfig(),
    *,
    name: str = "user/name",
    about: str = "",
) -> Path:
    """Writes `model.safetensors`, which says what it is, `config.json`, `sampling.yaml`, and a model card, `README.md`.

    Args:
        model: made with plain values.
        folder: is made where it is not there; files of these names are replaced.
        sampling: how the model is best drawn with.
        name: of the repository that it is for.
        about: paragraphs of the card: data, training, distance, licence.

    Raises:
        ValueError: the model was not made with plain values, or cannot draw with the sampling config.
        OSError: a file cannot be written.
    """
    folder, settled = Path(folder), model.settle(sampling)
    described = {"class_path": values.path_of(type(model)), "init_args": _arguments(model)}
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "model.safetensors", model.state_dict(), described)
    write_atomically(folder / "config.json", (json.dumps(described, indent=2) + "\n").encode())
    settled.save(folder / SAMPLING)
    write_atomically(folder / "README.md", _card(model, settled, name, about).encode())
    return folder


def push_to_hub(
    model: ARDiffusionModel,
    name: str,
    sampling: SamplingConfig = SamplingConfig(),
    *,
    about: str = "",
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Writes what `save_pretrained` writes into a repository of Hugging Face, which is made where it is not there.

    The token is the one that the library finds: of `hf auth login`, or in `HF_TOKEN`.

    Args:
        model, sampling, about: as of `save_pretrained`.
        name: `user/name`.
        private: whether a new repository is.
        revision: branch to write to.

    Returns:
        The address of the commit.

    Raises:
        ValueError: as of `save_pretrained`, or `huggingface_hub` is not installed.
        Exception: of `huggingface_hub`, if it cannot be written.
    """
    api = library().HfApi(library_name="disa_framework")
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, sampling, name=name, about=about)
        api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, revision=revision))


def _arguments(model: ARDiffusionModel) -> Any:
    try:
        return values.dump(model.made_with)
    except (AttributeError, TypeError) as error:
        kind = type(model).__name__
        raise ValueError(f"this {kind} cannot be described, as it was not made with plain values: {error}") from error


def _card(model: ARDiffusionModel, sampling: SamplingConfig, name: str, about: str) -> str:
    return _CARD.format(
        name=name, kind=type(model).__name__, about=f"\n{about.strip()}\n" if about else "", sampling=SAMPLING,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        condition="torch.arange(8) % model.num_classes" if model.num_classes else "…",
        shape=["B", *model.latent_shape], schedule=sampling.schedule, solver=sampling.solver, stages=sampling.stages,
        evaluations=sampling.evaluations(model.process),
    )  # fmt: skip
