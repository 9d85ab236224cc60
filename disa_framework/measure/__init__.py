"""Where time goes: the only place that looks at a clock."""

from disa_framework.measure.cases import Case, Timing, measure, on_one_device, peak_memory, placed, variations
from disa_framework.measure.cost import (
    CostModel,
    PredictedCost,
    Unit,
    analytic_cost,
    held_out_error,
    measure_cost,
    median_error,
)
from disa_framework.measure.laps import PARTS
from disa_framework.measure.latency import measure_latency
from disa_framework.measure.table import figures, made_with, rows, save
from disa_framework.measure.throughput import Throughput

__all__ = [
    "PARTS", "Case", "CostModel", "PredictedCost", "Throughput", "Timing", "Unit", "analytic_cost", "figures",
    "held_out_error", "made_with", "measure", "measure_cost", "measure_latency", "median_error", "on_one_device",
    "peak_memory", "placed", "rows", "save", "variations",
]  # fmt: skip
