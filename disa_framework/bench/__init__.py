"""Where the time of drawing goes, and how far it is from the time of its matrix products alone."""

from disa_framework.bench.laps import PARTS
from disa_framework.bench.measure import Case, Timing, measure
from disa_framework.bench.report import figures, plot, table

__all__ = ["PARTS", "Case", "Timing", "figures", "measure", "plot", "table"]
