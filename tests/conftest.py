"""One thread a test process: tests are small, and several processes share the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
from collections.abc import Callable

import pytest
import torch

from disa_framework.cli import start

torch.set_num_threads(1)


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, list[str]]]:
    """Runs a program that cannot do what it is asked to; gives its exit status, and what it says on standard error."""

    def run(prog: str, *args: str) -> tuple[object, list[str]]:
        monkeypatch.setattr(sys, "argv", [prog, *args])
        with pytest.raises(SystemExit) as stop:
            getattr(start, prog.removeprefix("disa-"))()
        return stop.value.code, capsys.readouterr().err.splitlines()

    return run
