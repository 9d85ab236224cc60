"""The published systems: where their weights are, what builds them, and how a file of theirs is recognised.

`PUBLISHED` is the one list of them; commands, documentation and tests read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from disa_framework.models.base import ARDiffusionModel
from disa_framework.models.checkpoint import apply_weights, misfit, read_checkpoint, some
from disa_framework.models.tokenizers import Tokenizer

_PACKAGE = "disa_framework."
_MODELS = "disa_framework.models."
_HUB = "https://huggingface.co"
_TELL = "say which model it is: disa-convert --model CONFIG, load_model(path, model=…)"
_MAR_DROPBOX = "https://www.dropbox.com/scl/fi/{}/checkpoint-last.pth?rlkey={}&dl=1"


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        description: what it is.
        urls: its address; those of all files for a folder.
        mib: its size in MiB, where it is known.
        constructor: name in `disa_framework.models` of what builds the model; `None` for a file without a model.
        sign: a key of the state dict that tells the family.
        sized_by: constructor of the part that tells the size, and its prefix in the state dict; all of it by default.
        config: name of the configuration with the paper's settings.
    """

    description: str
    urls: tuple[str, ...]
    mib: int | None = None
    constructor: str | None = None
    sign: str = ""
    sized_by: tuple[str, str] | None = None
    config: str | None = None

    @property
    def model(self) -> dict[str, Any]:
        """What a converted file says of its model."""
        return {"class_path": f"{_MODELS}{self.constructor}", "init_args": {}}


def _mar(size: str, letter: str, millions: float, mib: int, *place: str) -> Published:
    return Published(
        f"MAR-{letter}, {millions} million parameters, ImageNet 256x256", (_MAR_DROPBOX.format(*place),), mib,
        f"mar_{size}", "diffloss.net.input_proj.weight", config=f"mar/{size}",
    )  # fmt: skip


def _flowar(size: str, letter: str, millions: float) -> Published:
    return Published(
        f"FlowAR-{letter}, {millions} million parameters, ImageNet 256x256",
        (f"{_HUB}/OliverRen/FlowAR/resolve/main/FlowAR-{letter}.pth",), None,
        f"flowar_{size}", "flownet.input_proj.weight", config=f"flowar/{size}",
    )  # fmt: skip


def _xar(size: str, letter: str, millions: float) -> Published:
    return Published(
        f"xAR-{letter}, {millions} million parameters, ImageNet 256x256",
        (f"{_HUB}/OliverRen/xAR/resolve/main/xAR-{letter}.pth",), None,
        f"xar_{size}", "pred.weight", config=f"xar/{size}",
    )  # fmt: skip


def _harmon(size: str, mar: str, millions: float) -> Published:
    return Published(
        f"Harmon-{size.upper()}, {millions} million parameters and its language model, text to image",
        (f"{_HUB}/wusize/harmon/resolve/main/harmon_{size}.pth",), None,
        f"harmon_{size.replace('.', '_')}", "mar.fake_latent", (mar, "mar."), f"harmon/{size.replace('.', '_')}",
    )  # fmt: skip


def _qwen(size: str) -> Published:
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    return Published(
        f"tokenizer of Qwen2.5-{size}-Instruct, Harmon's language model",
        tuple(f"{_HUB}/Qwen/Qwen2.5-{size}-Instruct/resolve/main/{file}" for file in files),
    )


PUBLISHED = {
    "mar-base": _mar("base", "B", 207.9, 1587, "f6dpuyjb7fudzxcyhvrhk", "a6i4bo71vhfo4anp33n9ukujb"),
    "mar-large": _mar("large", "L", 478.3, 3650, "pxacc5b2mrt3ifw4cah6k", "m48ovo6g7ivcbosrbdaz0ehqt"),
    "mar-huge": _mar("huge", "H", 942.4, 7191, "1qmfx6fpy3k7j9vcjjs3s", "4lae281yzxb406atp32vzc83o"),
    "flowar-small": _flowar("small", "S", 171.7),
    "flowar-large": _flowar("large", "L", 586.9),
    "flowar-huge": _flowar("huge", "H", 1913.3),
    "xar-base": _xar("base", "B", 172.6),
    "xar-large": _xar("large", "L", 608.4),
    "xar-huge": _xar("huge", "H", 1186.0),
    "harmon-0.5b": _harmon("0.5b", "mar_base", 210.9),
    "harmon-1.5b": _harmon("1.5b", "mar_huge", 951.1),
    "kl16": Published(
        "KL-16, the autoencoder of all of them, 66.5 million parameters",
        ("https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",), 254,
        "Autoencoder", "quant_conv.weight",
    ),
    "qwen2.5-0.5b": _qwen("0.5B"),
    "qwen2.5-1.5b": _qwen("1.5B"),
    "adm-in256-stats": Published(
        "ADM's statistics of ImageNet 256x256, for FID",
        ("https://raw.githubusercontent.com/LTH14/mar/main/fid_stats/adm_in256_stats.npz",),
    ),
    "inception": Published(
        "torch-fidelity's Inception, for FID and Inception Score",
        ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",),
    ),
    "geneval": Published(
        "GenEval's 553 prompts",
        ("https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",),
    ),
}  # fmt: skip


def recognize(weights: Mapping[str, Tensor], source: str | Path) -> str:
    """The name of the published model that has these keys and shapes.

    Raises:
        ValueError: saying what differs from the nearest one.
    """
    candidates = [name for name, published in PUBLISHED.items() if published.sign and published.sign in weights]
    if not candidates:
        raise ValueError(f"{source} is of no published model, its keys are {some(list(weights))}; {_TELL}")
    differences = {}
    for name in candidates:
        constructor, prefix = PUBLISHED[name].sized_by or (PUBLISHED[name].constructor, "")
        with torch.device("meta"):
            own = stored(build(f"{_MODELS}{constructor}", {})).state_dict()
        part = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
        difference = misfit(own, part)
        if not difference:
            return name
        alike = sum(t.shape == own[key].shape for key, t in part.items() if key in own)
        differences[name] = (alike / len(own), difference)
    nearest = max(differences, key=lambda name: differences[name][0])
    raise ValueError(
        f"{source} is like {nearest}, but {differences[nearest][1]}. It is damaged, or of another size; {_TELL}"
    )


def load_model(path: str | Path, model: ARDiffusionModel | None = None, **options: Any) -> ARDiffusionModel:
    """The model in a file, ready to draw: in evaluation mode, on the CPU, in the precision of the file.

    Args:
        path: a converted file, or any file of a published system.
        model: takes the weights, with its own device and precision; needed for files of other kinds.
        options: arguments of the model that a file cannot know, such as Harmon's `tokenizer` and `image_size`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, does not say what it is, or does not fit the model.
    """
    checkpoint = read_checkpoint(path)
    if model is not None:
        apply_weights(model, checkpoint.weights, path)
        return model.eval()
    described = checkpoint.model or PUBLISHED[recognize(checkpoint.weights, path)].model
    built = build(described["class_path"], {**described["init_args"], **options})
    if not isinstance(built, ARDiffusionModel):
        raise ValueError(f"{path} holds an autoencoder: give it to disa_framework.models.Autoencoder(weights=…)")
    for name, parameter in built.named_parameters():
        if name in checkpoint.weights:
            parameter.data = torch.empty_like(parameter, dtype=checkpoint.weights[name].dtype)
    # Copied, not taken as they lie in the file: how numbers are rounded depends on where they begin in memory.
    apply_weights(built, checkpoint.weights, path)
    return built.eval()


def build(class_path: str, init_args: Mapping[str, Any]) -> nn.Module:
    """A model of this package whose parameters are allocated, but hold nothing yet; its buffers are computed.

    Raises:
        ValueError: it is not one of this package's models, or does not take these arguments.
    """
    constructor = _constructor(class_path)
    try:
        with torch.random.fork_rng(devices=[]), _Unfilled():
            return constructor(**init_args)
    except (AttributeError, TypeError) as error:  # as which arguments end that are no plain values
        raise ValueError(
            f"{class_path} does not take {dict(init_args)}: {error}; build it yourself, load_model(path, model=…)"
        ) from error


def _constructor(class_path: str) -> Callable[..., nn.Module]:
    """What a file may name: a model or tokenizer of this package, or one of its constructors of published sizes."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name) if class_path.startswith(_PACKAGE) else None
    except (ImportError, AttributeError):
        found = None
    published = [p.model["class_path"] for p in PUBLISHED.values() if p.constructor]
    if callable(found) and (
        class_path in published or (isinstance(found, type) and issubclass(found, ARDiffusionModel | Tokenizer))
    ):
        return found
    raise ValueError(f"{class_path} is no model of disa_framework: build it yourself, load_model(path, model=…)")


def stored(model: nn.Module) -> nn.Module:
    """The part of a model whose state dict its files hold: an autoencoder keeps its network to itself."""
    return getattr(model, "network", model)


class _Unfilled(TorchFunctionMode):
    """Leaves out the filling of parameters, so that a model which is about to be loaded takes neither time nor memory.

    Unlike on the meta device, what is computed when a model is made, such as its tables, is there.
    """

    # By name, since transformers puts its own in the place of torch's: kaiming_uniform_, trunc_normal_ and so on.
    _FILLS = ("uniform_", "normal_", "constant_", "fill_", "zero_")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        fills = getattr(func, "__name__", "").endswith(self._FILLS)
        return target if fills and isinstance(target, nn.Parameter) else func(*args, **kwargs)
