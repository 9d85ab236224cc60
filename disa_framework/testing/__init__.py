"""Contract suites: whoever adds a schedule, a solver or a model subclasses one and gives it a fixture.

    class TestMySchedule(ScheduleContract):
        @pytest.fixture
        def schedule(self) -> StepSchedule:
            return MySchedule(50)

They need pytest.
"""

import pytest

# Before the suites are imported, so that their failed assertions show values.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("models", "orders", "schedules", "solvers")))

from disa_framework.testing.models import ModelContract  # noqa: E402
from disa_framework.testing.orders import OrderContract, StageSizesContract  # noqa: E402
from disa_framework.testing.schedules import ScheduleContract  # noqa: E402
from disa_framework.testing.solvers import SolverContract  # noqa: E402

__all__ = ["ModelContract", "OrderContract", "ScheduleContract", "SolverContract", "StageSizesContract"]
