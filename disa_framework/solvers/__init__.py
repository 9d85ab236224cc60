"""Processes, grids and solvers: how a diffusion head turns noise into tokens."""

from disa_framework.solvers.base import Solver
from disa_framework.solvers.components import Components, Density
from disa_framework.solvers.ddim import DDIM
from disa_framework.solvers.ddpm import DDPM
from disa_framework.solvers.dpm_solver import DPMSolver, DPMSolverPP
from disa_framework.solvers.fitted import Fitted, Staged
from disa_framework.solvers.flow import Euler, EulerMaruyama, FlowMap, Heun
from disa_framework.solvers.grid import Grid, Halves, Leading, Linspace, Spaced, Strided, Uniform, UniformTime
from disa_framework.solvers.process import Nodes, Process, RectifiedFlow, VPCosine
from disa_framework.solvers.singlestep import SinglestepDPMSolverPP
from disa_framework.solvers.spacing import Karras, LogitNormal, LogSNR, PowerTime, Shift, Sway, Times
from disa_framework.solvers.table import Row, Table
from disa_framework.solvers.unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "Components", "DPMSolver", "DPMSolverPP", "Density", "Euler", "EulerMaruyama", "Fitted", "FlowMap",
    "Grid", "Halves", "Heun", "Karras", "Leading", "Linspace", "LogSNR", "LogitNormal", "Nodes", "PowerTime", "Process",
    "RectifiedFlow", "Row", "Shift", "SinglestepDPMSolverPP", "Solver", "Spaced", "Staged", "Strided", "Sway", "Table",
    "Times", "UniPC", "Uniform", "UniformTime", "VPCosine",
]  # fmt: skip
