"""Step schedules: how many diffusion steps each AR stage gets."""

from disa_framework.schedules.adaptive import Adaptive
from disa_framework.schedules.base import Budget, StepSchedule, check_budget
from disa_framework.schedules.heuristic import Constant, Cosine, Linear, TwoStage
from disa_framework.schedules.parametric import Logistic, PerStage, PiecewiseLinear, Power

__all__ = [
    "Adaptive", "Budget", "Constant", "Cosine", "Linear", "Logistic", "PerStage", "PiecewiseLinear", "Power",
    "StepSchedule", "TwoStage", "check_budget",
]  # fmt: skip
