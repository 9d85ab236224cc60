"""Schedules found from data: what a budget costs, where steps matter, and the best budget within a limit."""

from disa_framework.search.adaptation import fit_adaptive
from disa_framework.search.calibration import Profile, calibrate, measure_profile
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
from disa_framework.search.learning import learn
from disa_framework.search.study import search

__all__ = [
    "Choice",
    "CostModel",
    "Prediction",
    "Profile",
    "analytic_cost",
    "best_within",
    "calibrate",
    "fit_adaptive",
    "held_out_error",
    "learn",
    "measure_cost",
    "measure_latency",
    "measure_profile",
    "median_error",
    "pareto_front",
    "search",
]
