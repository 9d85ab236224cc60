"""A file imports from the floors below its own, and the lowest floors know PyTorch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import disa_framework

ROOT = Path(disa_framework.__file__).parent
PACKAGE = disa_framework.__name__

FLOORS = (
    ("devices",),
    ("noise", "guidance", "files", "memory", "models.attention", "models.compiling", "models.graphs", "models.linear"),
    ("page", "solvers", "schedules", "models.layers"),
    ("models", "trajectory"),
    ("generation",),
    ("metrics", "data", "callbacks"),
    ("module",),
    ("search",),
    ("diagnostics", "bench"),
    ("cli",),
)
PLAIN = FLOORS[:5]  # these know PyTorch alone, and print nothing
OPTIONAL = {"diffusers", "flash_attn", "matplotlib", "transformers"}  # imported where they are used
PLAIN_MAY_IMPORT = {"torch", "safetensors", "yaml", *sys.stdlib_module_names}
SHARED = {"metrics", "data", "callbacks"}  # which may use each other


class Import(NamedTuple):
    """One imported module, by its full name, and whether importing the file is enough to import it."""

    name: str
    at_once: bool


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(node: ast.AST, at_once: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "imports are absolute here"
            # What is imported may itself be a module.
            yield from (Import(f"{child.module}.{alias.name}", at_once) for alias in child.names)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(child)
        yield from imports_of(child, at_once and not later)


def part_of(name: str) -> str:
    """The longest name of a floor's part that a module belongs to, without the package: `models.layers`."""
    inner = name.removeprefix(f"{PACKAGE}.")
    parts = [part for floor in FLOORS for part in floor if inner == part or inner.startswith(f"{part}.")]
    return max(parts, key=len, default="")


def floor_of(part: str) -> int:
    return next(height for height, floor in enumerate(FLOORS) if part in floor)


def module_name(path: Path) -> str:
    return ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
PARTS = {name: part_of(name) for name in FILES if part_of(name)}


def inner_imports(name: str) -> list[str]:
    """What a file of ours imports from the package."""
    return [i.name for i in imports_of(FILES[name]) if i.name.partition(".")[0] == PACKAGE]


def allowed(importer: str, imported: str) -> bool:
    """Whether a file of one part may import from another."""
    return (
        importer == imported
        or floor_of(imported) < floor_of(importer)
        or {importer, imported} <= SHARED
    )


def test_every_file_has_a_floor() -> None:
    elsewhere = {name for name in FILES if name not in PARTS}
    assert {n for n in elsewhere if not n.startswith(f"{PACKAGE}.testing")} == {PACKAGE}


@pytest.mark.parametrize("name", PARTS)
def test_a_file_imports_from_floors_below(name: str) -> None:
    wrong = [i for i in inner_imports(name) if not (part_of(i) and allowed(PARTS[name], part_of(i)))]
    assert not wrong, f"{name} may not import {wrong}"


PLAIN_FILES = [name for name, part in PARTS.items() if floor_of(part) < len(PLAIN)]


@pytest.mark.parametrize("name", [PACKAGE, *PLAIN_FILES])
def test_the_lowest_floors_know_pytorch_alone(name: str) -> None:
    for imported, at_once in imports_of(FILES[name]):
        library = imported.partition(".")[0]
        may = library in PLAIN_MAY_IMPORT or library == PACKAGE or (library in OPTIONAL and not at_once)
        assert may, f"{name} imports {imported}"


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_the_lowest_floors_print_nothing(name: str) -> None:
    names = [node.func.id for node in ast.walk(FILES[name])
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
    assert "print" not in names


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(f"{PACKAGE}.testing")])
def test_contract_suites_know_nothing_above_generation(name: str) -> None:
    outside = [i for i in inner_imports(name) if not i.startswith(f"{PACKAGE}.testing.")]
    wrong = [i for i in outside if not (part_of(i) and floor_of(part_of(i)) < floor_of("module"))]
    assert not wrong, f"{name} may not import {wrong}"


def test_importing_the_package_imports_no_application_library() -> None:
    program = f"import sys, {PACKAGE}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert PACKAGE in loaded
    assert not loaded & {"lightning", "optuna", "jsonargparse", "torchmetrics", "pytest", *OPTIONAL}
