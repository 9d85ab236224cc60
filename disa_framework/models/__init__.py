"""AR models with a diffusion head."""

from disa_framework.models.autoencoder import Autoencoder
from disa_framework.models.base import ARDiffusionModel, Proposal
from disa_framework.models.causal import CausalAR
from disa_framework.models.flowar import FlowAR, flowar_huge, flowar_large, flowar_small
from disa_framework.models.guided import GuidedStep
from disa_framework.models.harmon import Harmon, harmon_0_5b, harmon_1_5b
from disa_framework.models.mar import MAR, mar_base, mar_huge, mar_large
from disa_framework.models.mixture import MixtureAR
from disa_framework.models.published import load_model
from disa_framework.models.tokenizers import Identity, SpaceToDepth, Tokenizer
from disa_framework.models.xar import XAR, xar_base, xar_huge, xar_large

__all__ = [
    "MAR",
    "XAR",
    "ARDiffusionModel",
    "Autoencoder",
    "CausalAR",
    "FlowAR",
    "GuidedStep",
    "Harmon",
    "Identity",
    "MixtureAR",
    "Proposal",
    "SpaceToDepth",
    "Tokenizer",
    "flowar_huge",
    "flowar_large",
    "flowar_small",
    "harmon_0_5b",
    "harmon_1_5b",
    "load_model",
    "mar_base",
    "mar_huge",
    "mar_large",
    "xar_base",
    "xar_huge",
    "xar_large",
]
