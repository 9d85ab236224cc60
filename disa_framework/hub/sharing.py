"""Models and sampling configs for others: in a folder, and in a repository of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from disa_framework import values
from disa_framework.files import write_atomically
from disa_framework.hub.checkpoint import write_checkpoint
from disa_framework.hub.repository import HUB, library, repository
from disa_framework.models.base import ARDiffusionModel
from disa_framework.sampling.config import SamplingConfig

SAMPLING = "sampling.yaml"
"""How a shared model is drawn with."""

_HEADER = """---
library_name: disa_framework
tags: [autoregressive, diffusion, image-generation]
---

# {name}
"""
_MODEL = """
A {kind} with {millions:.1f} million parameters, for the Python package `disa-framework`.
{about}
## Drawing

```python
import torch

from disa_framework import SamplingConfig, generate
from disa_framework.hub import load_model, shared_sampling

model, sampling = load_model("hf:{name}"), SamplingConfig.load(shared_sampling("hf:{name}"))
latents = generate(model, {condition}, sampling, seed=0)  # {shape}
```
"""
_RECIPE = """
How to draw with a {kind}: a sampling config for the Python package `disa-framework`.
{about}
## Drawing

    disa-predict --config NAME --ckpt_path FILE --sampling hf:{name}

From Python it is `SamplingConfig.load(shared_sampling("hf:{name}"))`, with `shared_sampling` from `disa_framework.hub`.
"""
_TABLE = """
| | |
|---|---|
| schedule | `{schedule}` |
| solver | `{solver}` |
| stages | {stages} |
| steps | {steps}, from {first} at the first stage to {last} at the last |
| head evaluations | {evaluations} |
"""


def shared_sampling(source: str | Path) -> Path:
    """Where the sampling config is, if one was shared: in a repository `hf:user/name`, in a folder, or beside a file.

    Raises:
        OSError, ValueError: as of `repository`.
    """
    place = repository(source) if str(source).startswith(HUB) else Path(source)
    return (place if place.is_dir() else place.parent) / SAMPLING


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
    write_atomically(folder / "README.md", _card(_MODEL, model, settled, name, about).encode())
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
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, sampling, name=name, about=about)
        return _upload(folder, name, private, revision)


def push_sampling(
    sampling: SamplingConfig,
    name: str,
    model: ARDiffusionModel,
    *,
    about: str,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Writes a sampling config, such as a study's `best.yaml`, with a card into a repository of its own, from which
    `--sampling hf:user/name` reads it.

    Args:
        sampling: how to draw.
        name, private, revision: as of `push_to_hub`.
        model: for which it was found; its weights are not written.
        about: paragraphs of the card: how and on which weights it was found, and what was measured.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the model cannot draw with it, or `huggingface_hub` is not installed.
        Exception: of `huggingface_hub`, if it cannot be written.
    """
    settled = model.settle(sampling)
    with TemporaryDirectory() as folder:
        settled.save(Path(folder) / SAMPLING)
        (Path(folder) / "README.md").write_text(_card(_RECIPE, model, settled, name, about), encoding="utf-8")
        return _upload(folder, name, private, revision)


def _upload(folder: str, name: str, private: bool, revision: str | None) -> str:
    api = library().HfApi(library_name="disa_framework")
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


def _card(body: str, model: ARDiffusionModel, sampling: SamplingConfig, name: str, about: str) -> str:
    return (_HEADER + body + _TABLE).format(
        name=name, kind=type(model).__name__, about=f"\n{about.strip()}\n" if about else "",
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        condition="torch.arange(8) % model.num_classes" if model.num_classes else "…",
        shape=["B", *model.latent_shape], schedule=sampling.schedule, solver=sampling.solver, stages=sampling.stages,
        steps=sum(sampling.budget), first=sampling.budget[0], last=sampling.budget[-1],
        evaluations=sampling.evaluations(model.process),
    )  # fmt: skip
