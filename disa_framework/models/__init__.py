"""AR models with a diffusion head: the contract, and a file for each family."""

from disa_framework.models.base import ARDiffusionModel, Losses, Proposal, TokenLayout
from disa_framework.models.causal import CausalAR
from disa_framework.models.emigm import (
    EMIGM,
    emigm_base,
    emigm_base_512,
    emigm_huge,
    emigm_large,
    emigm_large_512,
    emigm_small,
    emigm_small_512,
    emigm_xsmall,
    emigm_xsmall_512,
)
from disa_framework.models.flowar import FlowAR, flowar_huge, flowar_large, flowar_small
from disa_framework.models.harmon import Harmon, harmon_0_5b, harmon_1_5b, unipic_1_5b
from disa_framework.models.mar import MAR, mar_base, mar_huge, mar_large
from disa_framework.models.nova import NOVA, nova_0_3b, nova_0_6b, nova_1_4b
from disa_framework.models.sphere import SphereAR, spherear_b, spherear_h, spherear_l
from disa_framework.models.xar import XAR, xar_base, xar_huge, xar_large

__all__ = [
    "EMIGM", "MAR", "NOVA", "XAR", "ARDiffusionModel", "CausalAR", "FlowAR", "Harmon", "Losses", "Proposal",
    "SphereAR", "TokenLayout", "emigm_base", "emigm_base_512", "emigm_huge", "emigm_large", "emigm_large_512",
    "emigm_small", "emigm_small_512", "emigm_xsmall", "emigm_xsmall_512", "flowar_huge", "flowar_large",
    "flowar_small", "harmon_0_5b", "harmon_1_5b", "mar_base", "mar_huge", "mar_large", "nova_0_3b", "nova_0_6b",
    "nova_1_4b", "spherear_b", "spherear_h", "spherear_l", "unipic_1_5b", "xar_base", "xar_huge", "xar_large",
]  # fmt: skip
