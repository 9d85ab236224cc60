"""Why a schedule works: evidence stage by stage, and the paper's ablations."""

from disa_framework.diagnostics.ablation import ABLATIONS, Ablation, Variation, ablate
from disa_framework.diagnostics.diagnosis import PARTS, Diagnosis, diagnose
from disa_framework.diagnostics.runs import MENU, Probe

__all__ = ["ABLATIONS", "MENU", "PARTS", "Ablation", "Diagnosis", "Probe", "Variation", "ablate", "diagnose"]
