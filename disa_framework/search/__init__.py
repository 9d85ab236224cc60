"""Finds how a model is best drawn with: `find`, and the parts that it is made of."""

from disa_framework.search.adaptation import fit_adaptive
from disa_framework.search.calibration import Calibration, Profile, measure_profile
from disa_framework.search.find import find
from disa_framework.search.fitting import Fitting, fit_solver
from disa_framework.search.learning import learn
from disa_framework.search.limits import Costs, Limit, fitted_ramps
from disa_framework.search.meter import Meter
from disa_framework.search.plan import Found, Plan, Point
from disa_framework.search.space import Knots, Space, Stages
from disa_framework.search.storage import open_storage

__all__ = [
    "Calibration", "Costs", "Fitting", "Found", "Knots", "Limit", "Meter", "Plan", "Point", "Profile", "Space",
    "Stages", "find", "fit_adaptive", "fit_solver", "fitted_ramps", "learn", "measure_profile", "open_storage",
]  # fmt: skip
