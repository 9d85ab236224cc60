"""What pyproject.toml declares is what has been tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name(requirement: str) -> str:
    return re.split(r"[\[><=;]", requirement)[0].replace("_", "-").lower()


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def constraints(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pairs = [line.partition("==") for line in lines if line and line[0] != "#"]
    return {name(package): version for package, _, version in pairs}


def ranges(*extras: str) -> dict[str, str]:
    """The lower bound of each requirement, of those without an extra and with some."""
    requirements = [*PROJECT["dependencies"], *(r for e in extras for r in PROJECT["optional-dependencies"][e])]
    return {name(r): r.partition(">=")[2] for r in requirements if not r.startswith(PROJECT["name"])}


def test_drawing_needs_no_more_than_pytorch_and_two_readers_of_files() -> None:
    assert ranges().keys() == {"torch", "safetensors", "pyyaml", "typing-extensions"}  # the last one is PyTorch's, too


def test_the_lowest_versions_that_are_allowed_are_those_that_are_tested() -> None:
    tested = constraints("constraints-lowest.txt")
    bounds = ranges("commands", "harmon", "vae")
    assert bounds.keys() == tested.keys()
    assert [package for package, low in bounds.items() if not f"{tested[package]}.".startswith(f"{low}.")] == []


def test_the_pinned_set_is_within_the_ranges() -> None:
    pinned = constraints("constraints.txt")
    bounds = {package: low for package, low in ranges("commands", "harmon", "vae", "speech", "dev").items() if low}
    common = bounds.keys() & pinned.keys()
    assert [package for package in common if numbers(pinned[package]) < numbers(bounds[package])] == []
