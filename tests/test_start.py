"""`disa` and a command, and the report of versions."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

from disa_framework.cli import start
from disa_framework.cli.env import env

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def disa(*args: str) -> subprocess.CompletedProcess[str]:
    program = "from disa_framework.cli.start import disa; disa()"
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=120, check=False
    )


def test_every_command_is_there_by_both_names() -> None:
    assert {f"disa-{name}" for name in start.COMMANDS} - SCRIPTS.keys() == {"disa-env"}
    for name in start.COMMANDS:
        assert callable(getattr(import_module(f"disa_framework.cli.{name}"), name))
    for script in SCRIPTS.values():
        module, _, name = script.partition(":")
        assert callable(getattr(import_module(module), name))


def test_what_there_is_is_listed() -> None:
    for args in ([], ["--help"]):
        done = disa(*args)
        assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in start.COMMANDS)


def test_a_command_has_its_own_options() -> None:
    done = disa("predict", "--config", "fashion/mar", "--num_images", "x")
    assert done.returncode == 2 and done.stderr.startswith("disa-predict: error:") and "num_images" in done.stderr


def test_a_command_that_is_not_there_is_refused() -> None:
    done = disa("draw")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "predict" in done.stderr


def test_a_report_has_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    env()
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["torch"].strip() == torch.__version__ and {"Python", "CPU", "GPU", "CUDA", "lightning"} <= facts.keys()
