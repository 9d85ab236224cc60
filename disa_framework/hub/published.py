"""The published systems: where their weights are, what builds them, and the sign that a file of theirs has.

`PUBLISHED` is the one list of them; commands, documentation and tests read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PACKAGE = "disa_framework."
_HUB = "https://huggingface.co"
_DROPBOX = "https://www.dropbox.com/scl/fi/{}?rlkey={}&dl=1"
_GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Published:
    """What is published under one name: a file or files, anywhere or in a repository of Hugging Face.

    Attributes:
        description: what it is.
        url: its address, or that of the folder of its files, for what lies elsewhere.
        repo: its repository of Hugging Face.
        files: of the repository, or of the folder.
        mib: its size in MiB, where it is known.
        sha256: its digest, or that of each of its files, where it is known.
        constructor: what builds the model, by its place in the package; `None` for a file without a model.
        sign: a key of the state dict that tells the family.
        sized_by: constructor of the part that tells the size, and its prefix in the state dict; all of it by default.
        config: name of the configuration with the paper's settings.
    """

    description: str
    url: str = ""
    repo: str = ""
    files: tuple[str, ...] = ()
    mib: int | None = None
    sha256: tuple[str, ...] = ()
    constructor: str | None = None
    sign: str = ""
    sized_by: tuple[str, str] | None = None
    config: str | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of its file, or of each of its files."""
        root = self.url or f"{_HUB}/{self.repo}/resolve/main"
        return tuple(f"{root}/{file}" for file in self.files) or (root,)

    @property
    def makers(self) -> tuple[str, ...]:
        """What builds the model, and the part that tells its size, by their places in the package."""
        return tuple(filter(None, (self.constructor, self.sized_by and self.sized_by[0])))

    @property
    def model(self) -> dict[str, Any]:
        """What a converted file says of its model."""
        return self.model_with({})

    def model_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same, with arguments that files beside the weights say."""
        return {"class_path": f"{_PACKAGE}{self.constructor}", "init_args": dict(options)}


def _mar(size: str, letter: str, millions: float, mib: int, place: str, key: str) -> Published:
    return Published(
        f"MAR-{letter}, {millions} million parameters, ImageNet 256x256",
        url=_DROPBOX.format(f"{place}/checkpoint-last.pth", key), mib=mib,
        constructor=f"models.mar_{size}", sign="diffloss.net.input_proj.weight", config=f"mar/{size}",
    )  # fmt: skip


def _ren(family: str, size: str, letter: str, millions: float, sign: str) -> Published:
    """FlowAR or xAR, which the same authors publish in the same way."""
    name = family.lower()
    return Published(
        f"{family}-{letter}, {millions} million parameters, ImageNet 256x256",
        repo=f"OliverRen/{family}", files=(f"{family}-{letter}.pth",),
        constructor=f"models.{name}_{size}", sign=sign, config=f"{name}/{size}",
    )  # fmt: skip


def _emigm(size: str, letter: str, millions: float, side: int) -> Published:
    """Of images with so many pixels a side."""
    name = size if side == 256 else f"{size}_{side}"
    return Published(
        f"eMIGM-{letter}, {millions} million parameters, ImageNet {side}x{side}, MIT licence",
        repo="GSAI-ML/eMIGM", files=(f"eMIGM_{size}_{side}_checkpoint.pth",), constructor=f"models.emigm_{name}",
        sign="diffloss.net.input_proj.weight", config=f"emigm/{name.replace('_', '-')}",
    )  # fmt: skip


def _harmon(size: str, mar: str, millions: float) -> Published:
    name = size.replace(".", "_")
    return Published(
        f"Harmon-{size.upper()}, {millions} million parameters and its language model, text to image",
        repo="wusize/harmon", files=(f"harmon_{size}.pth",), constructor=f"models.harmon_{name}",
        sign="mar.fake_latent", sized_by=(f"models.{mar}", "mar."), config=f"harmon/{name}",
    )  # fmt: skip


def _spherear(letter: str, millions: float) -> Published:
    size = letter.lower()
    return Published(
        f"SphereAR-{letter}, {millions} million parameters, ImageNet 256x256, without a licence",
        repo="guolinke/SphereAR", files=(f"SphereAR_{letter}.pt",),
        constructor=f"models.spherear_{size}", sign="pos_for_diff.weight", config=f"spherear/{size}",
    )  # fmt: skip


def _nova(size: str, width: int, millions: float) -> Published:
    name = size.replace(".", "_")
    return Published(
        f"NOVA-{size.upper()}, {millions} million parameters beside Phi-2, text to image, Apache-2.0 licence",
        repo=f"BAAI/nova-d48w{width}-sdxl1024", constructor=f"models.nova_{name}", sign="mask_embed.bos_token",
        files=(
            "transformer/diffusion_pytorch_model.safetensors", "transformer/config.json",
            "scheduler/scheduler_config.json",
        ),
        config=f"nova/{name}",
    )  # fmt: skip


def _qwen(size: str) -> Published:
    return Published(
        f"tokenizer of Qwen2.5-{size}-Instruct, Harmon's language model", repo=f"Qwen/Qwen2.5-{size}-Instruct",
        files=("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    )  # fmt: skip


PUBLISHED = {
    "mar-base": _mar("base", "B", 207.9, 1587, "f6dpuyjb7fudzxcyhvrhk", "a6i4bo71vhfo4anp33n9ukujb"),
    "mar-large": _mar("large", "L", 478.3, 3650, "pxacc5b2mrt3ifw4cah6k", "m48ovo6g7ivcbosrbdaz0ehqt"),
    "mar-huge": _mar("huge", "H", 942.4, 7191, "1qmfx6fpy3k7j9vcjjs3s", "4lae281yzxb406atp32vzc83o"),
    "flowar-small": _ren("FlowAR", "small", "S", 171.7, "flownet.input_proj.weight"),
    "flowar-large": _ren("FlowAR", "large", "L", 586.9, "flownet.input_proj.weight"),
    "flowar-huge": _ren("FlowAR", "huge", "H", 1913.3, "flownet.input_proj.weight"),
    "xar-base": _ren("xAR", "base", "B", 172.6, "pred.weight"),
    "xar-large": _ren("xAR", "large", "L", 608.4, "pred.weight"),
    "xar-huge": _ren("xAR", "huge", "H", 1186.0, "pred.weight"),
    "harmon-0.5b": _harmon("0.5b", "mar_base", 210.9),
    "harmon-1.5b": _harmon("1.5b", "mar_huge", 951.1),
    "unipic-1.5b": Published(
        "UniPic-1.5B, 954.0 million parameters and its language model, text to image, MIT licence",
        repo="Skywork/Skywork-UniPic-1.5B", files=("pytorch_model.bin",), constructor="models.unipic_1_5b",
        sign="mar.fake_latent", sized_by=("models.harmon.unipic_mar", "mar."), config="unipic/1_5b",
    ),
    "emigm-xsmall": _emigm("xsmall", "XS", 69.0, 256),
    "emigm-small": _emigm("small", "S", 96.6, 256),
    "emigm-base": _emigm("base", "B", 207.9, 256),
    "emigm-large": _emigm("large", "L", 478.3, 256),
    "emigm-huge": _emigm("huge", "H", 942.4, 256),
    "emigm-xsmall-512": _emigm("xsmall", "XS", 104.5, 512),
    "emigm-small-512": _emigm("small", "S", 132.1, 512),
    "emigm-base-512": _emigm("base", "B", 244.2, 512),
    "emigm-large-512": _emigm("large", "L", 478.4, 512),
    "nova-0.3b": _nova("0.3b", 768, 363.9),
    "nova-0.6b": _nova("0.6b", 1024, 645.7),
    "nova-1.4b": _nova("1.4b", 1536, 1449.8),
    "kl16": Published(
        "KL-16, the autoencoder of all of them at 256x256, 66.5 million parameters",
        url=_DROPBOX.format("hhmuvaiacrarfg28qxhwz/kl16.ckpt", "l44xipsezc8atcffdp4q7mwmh"), mib=254,
        constructor="tokenizers.Autoencoder", sign="quant_conv.weight",
    ),
    "spherear-b": _spherear("B", 204.5),
    "spherear-l": _spherear("L", 476.4),
    "spherear-h": _spherear("H", 943.9),
    "qwen2.5-0.5b": _qwen("0.5B"),
    "qwen2.5-1.5b": _qwen("1.5B"),
    "adm-in256-stats": Published(
        "ADM's statistics of ImageNet 256x256, for FID",
        url=f"{_GITHUB}/LTH14/mar/main/fid_stats/adm_in256_stats.npz",
    ),
    "inception": Published(
        "torch-fidelity's Inception, for FID and Inception Score",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        mib=91, sha256=("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",),
    ),
    "geneval": Published(
        "GenEval's 553 prompts", url=f"{_GITHUB}/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl"
    ),
    "fashion-mnist": Published(
        "Fashion-MNIST, 70,000 images of clothes, MIT licence",
        url=f"{_GITHUB}/zalandoresearch/fashion-mnist/master/data/fashion",
        files=(
            "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
        ),
        sha256=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}  # fmt: skip
