"""AR models with a diffusion head."""

from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.models.mar import MAR, mar_base, mar_huge, mar_large
from disa_framework.models.mixture import MixtureAR
from disa_framework.models.tokenizers import Identity, Tokenizer

__all__ = [
    "MAR", "ARDiffusionModel", "Identity", "MixtureAR", "Proposal", "Tokenizer", "mar_base", "mar_huge", "mar_large",
]  # fmt: skip
