"""Where time goes: the only place that looks at a clock."""

from disa_framework.measure.cases import (
    ONE_DEVICE,
    PARTS,
    Case,
    Timing,
    on_one_device,
    placed,
    time_cases,
    variations,
)
from disa_framework.measure.cost import CostModel, Unit, analytic_cost, held_out_error, measure_cost
from disa_framework.measure.latency import measure_latency
from disa_framework.measure.report import made_with, plain, save, table
from disa_framework.measure.throughput import Throughput

__all__ = [
    "ONE_DEVICE", "PARTS", "Case", "CostModel", "Throughput", "Timing", "Unit", "analytic_cost", "held_out_error",
    "made_with", "measure_cost", "measure_latency", "on_one_device", "placed", "plain", "save", "table", "time_cases",
    "variations",
]  # fmt: skip
