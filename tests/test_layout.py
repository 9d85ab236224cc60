"""A file imports from the floors below its own, and the lowest floors know PyTorch alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import disa_framework

ROOT = Path(disa_framework.__file__).parent
PACKAGE = disa_framework.__name__

FLOORS = (
    ("files", "progress", "values", "runtime.devices"),
    ("solvers",),
    ("sampling.history",),
    ("schedules",),
    ("sampling.guidance", "sampling.noise", "sampling.condition", "sampling.stage_sizes"),
    ("sampling.order",),
    ("nn",),
    ("runtime",),
    ("sampling.config",),
    ("models.base",),
    ("models",),
    ("sampling.generation", "sampling.replaying"),
    ("toy.mixture",),
    ("testing",),
    ("hub",),
    ("tokenizers",),
    ("resuming", "page", "metrics.images"),
    ("data",),
    ("metrics",),
    ("toy.classifier", "toy.digits"),
    ("module",),
    ("metrics.quality",),
    ("toy",),
    ("callbacks", "measure"),
    ("prediction", "search"),
    ("diagnostics", "app"),
    ("cli",),
    ("integrations",),
)
PLAIN = FLOORS[: FLOORS.index(("toy.mixture",)) + 1]
"""These know PyTorch alone, and print nothing."""
PLAIN_MAY_IMPORT = {"torch", "yaml", "typing_extensions", *sys.stdlib_module_names}
WHERE_USED = {"flash_attn", "matplotlib", "transformers"}
"""What a function of theirs may import."""


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


def floor_of(name: str) -> int:
    """The height of the floor that has the longest name a module belongs to; -1 if none has."""
    inner = name.removeprefix(f"{PACKAGE}.")
    parts = {part: height for height, floor in enumerate(FLOORS) for part in floor}
    belongs = [part for part in parts if inner == part or inner.startswith(f"{part}.")]
    return parts[max(belongs, key=len)] if belongs else -1


def module_name(path: Path) -> str:
    return ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
PLAIN_FILES = [name for name in FILES if 0 <= floor_of(name) < len(PLAIN)]


def test_every_file_has_a_floor() -> None:
    without = {name for name in FILES if floor_of(name) < 0}
    assert {name for name in without if any(imports_of(FILES[name]))} == {PACKAGE}


@pytest.mark.parametrize("name", [name for name in FILES if floor_of(name) >= 0])
def test_a_file_imports_from_its_own_floor_and_those_below(name: str) -> None:
    inner = [i.name for i in imports_of(FILES[name]) if i.name.partition(".")[0] == PACKAGE]
    wrong = [imported for imported in inner if not 0 <= floor_of(imported) <= floor_of(name)]
    assert not wrong, f"{name} may not import {wrong}"


@pytest.mark.parametrize("name", [PACKAGE, *PLAIN_FILES])
def test_the_lowest_floors_know_pytorch_alone(name: str) -> None:
    for imported, at_once in imports_of(FILES[name]):
        library = imported.partition(".")[0]
        may = library in PLAIN_MAY_IMPORT or library == PACKAGE or (library in WHERE_USED and not at_once)
        assert may, f"{name} imports {imported}"


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_the_lowest_floors_print_nothing(name: str) -> None:
    names = [node.func.id for node in ast.walk(FILES[name])
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
    assert "print" not in names
