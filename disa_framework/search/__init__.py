"""Schedules found from data: what a budget costs, where steps matter, and the best budget within a limit."""

from disa_framework.search.cost import (
    CostModel,
    Prediction,
    analytic_cost,
    held_out_error,
    measure_cost,
    measure_latency,
    median_error,
)
from disa_framework.search.knapsack import Choice, best_within, pareto_front

__all__ = [
    "Choice",
    "CostModel",
    "Prediction",
    "analytic_cost",
    "best_within",
    "held_out_error",
    "measure_cost",
    "measure_latency",
    "median_error",
    "pareto_front",
]
