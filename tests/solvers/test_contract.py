"""Every solver keeps the contract, with every kind of process and grid that fits it."""

from collections.abc import Callable

import pytest
import torch

from disa_framework.solvers import (
    DDIM,
    DDPM,
    Components,
    Density,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Karras,
    Linspace,
    LogSNR,
    PowerTime,
    Process,
    RectifiedFlow,
    Row,
    Shift,
    SinglestepDPMSolverPP,
    Solver,
    Spaced,
    Strided,
    Sway,
    Table,
    Uniform,
    UniformTime,
    UniPC,
    VPCosine,
)
from disa_framework.testing import SolverContract
from disa_framework.testing.solvers import STD

VP, FLOW, LEARNED, VELOCITY = VPCosine(), RectifiedFlow(), VPCosine(learns_variance=True), VPCosine(predicts="v")
VARIANCE_PRESERVING = [
    DDPM(), DDPM(Spaced(), "small"), DDPM(variance="large"), DDIM(), DDIM(eta=1.0),
    *(kind(order) for kind in (DPMSolver, DPMSolverPP) for order in (1, 2, 3)),
    DPMSolver(2, Spaced(950)), DPMSolverPP(3, Spaced(950)),
]  # fmt: skip
OF_FLOWS = [
    Euler(), Heun(), EulerMaruyama(), EulerMaruyama(final_step="flow"), Euler(Uniform(0.1)), DDIM(Uniform()),
    DDIM(Uniform(), eta=1.0), *(DPMSolverPP(order, Uniform()) for order in (1, 2, 3)),
]  # fmt: skip
CASES = [
    *((solver, VP) for solver in VARIANCE_PRESERVING),
    *((solver, LEARNED) for solver in (DDPM(), DDPM(Spaced(), "learned"), DDIM(), DPMSolverPP())),
    *((solver, VELOCITY) for solver in (DDPM(), DDIM(eta=1.0), DPMSolver(), DPMSolverPP(2, Linspace()))),
    *((solver, FLOW) for solver in OF_FLOWS),
    (Components(STD), Density(8)),  # the value 0 is a scale of 1
]


class TestSolver(SolverContract):
    @pytest.fixture(params=CASES, ids=lambda case: str(case[0]))
    def case(self, request: pytest.FixtureRequest) -> tuple[Solver, Process]:
        return request.param

    @pytest.fixture
    def solver(self, case: tuple[Solver, Process]) -> Solver:
        return case[0]

    @pytest.fixture
    def process(self, case: tuple[Solver, Process]) -> Process:
        return case[1]


ANY = [
    DPMSolverPP(2, LogSNR(), eta=0.5), DPMSolverPP(2, Karras(), eta=1.0), DPMSolverPP(3, PowerTime()), UniPC(),
    UniPC(Sway()), *(SinglestepDPMSolverPP(order) for order in (1, 2, 3)), SinglestepDPMSolverPP(3, Shift(shift=0.5)),
]  # fmt: skip


class TestOfAnyProcess(TestSolver):
    @pytest.fixture(
        params=[(s, p) for s in ANY for p in (VP, FLOW, VELOCITY)], ids=lambda case: f"{case[0]}, {case[1]}"
    )
    def case(self, request: pytest.FixtureRequest) -> tuple[Solver, Process]:
        return request.param

    def wrong_process(self, process: Process) -> None:
        return None


class TestStrided(TestSolver):
    steps = (*range(2, 13), 25, 50)  # one step has no stride

    @pytest.fixture(
        params=[(DDIM(Strided()), VP), (DPMSolverPP(grid=Strided(None)), VP)], ids=lambda case: str(case[0])
    )
    def case(self, request: pytest.FixtureRequest) -> tuple[Solver, Process]:
        return request.param


NONSENSE: dict[str, Callable[[], object]] = {
    "eta must lie in": lambda: DDIM(eta=1.5),
    "variance must be one of": lambda: DDPM(variance="tiny"),  # type: ignore[arg-type]
    "order must be 1, 2 or 3": lambda: DPMSolverPP(4),  # type: ignore[arg-type]
    "at least 1, got 0": lambda: Spaced(0),
    "at least 1, got -1": lambda: Strided(-1),
    "between 0 and 1, got last=1": lambda: Uniform(1.0),
    "clip=31 does not allow": lambda: UniformTime(31).nodes(VPCosine(), 5),
    "clip=1000 does not allow": lambda: UniformTime(1000).nodes(VPCosine(), 5),
    "predicts no variance": lambda: DDPM(variance="learned").table(VP, 1),
    "row 0 reads an m from before": lambda: Table(VPCosine().nodes([9]), (Row(P=0, Q=1, A=1, B=1, C=1),)),
    "row 1 reads an m from before": lambda: Table(VPCosine().nodes([9, 5]), (Row(0, 1, 1, 1), Row(0, 1, 1, 1, 1, 1))),
    "predicts must be one of noise, v": lambda: VPCosine(predicts="velocity"),  # type: ignore[arg-type]
    "give alpha and sigma": lambda: VELOCITY.target(torch.zeros(1), torch.ones(1)),
    "has no times: use Components": lambda: DPMSolverPP(grid=LogSNR()).table(Density(4), 5),
    "use the solver Components": lambda: DDIM().table(Density(4), 5),
    "temperature must be": lambda: Components(-1.0),
    "components must be": lambda: Density(0),
    "use DPMSolverPP": lambda: DPMSolver(grid=Uniform()).table(RectifiedFlow(), 5),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_options_that_make_no_sense_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NONSENSE[message]()
