"""Why a schedule works: evidence stage by stage, and the paper's ablations."""

from disa_framework.diagnostics.ablation import ABLATIONS, Case, asymmetry, measure_ablation
from disa_framework.diagnostics.diagnosis import PARTS, Diagnosis, diagnose
from disa_framework.diagnostics.runs import MENU

__all__ = ["ABLATIONS", "MENU", "PARTS", "Case", "Diagnosis", "asymmetry", "diagnose", "measure_ablation"]
