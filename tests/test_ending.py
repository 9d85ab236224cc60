"""How commands end that do not come to their end: by a signal, without memory, or with nowhere to write to."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from disa_framework.cli import start
from disa_framework.tokenizers import Autoencoder
from disa_framework.toy.mixture import MixtureAR
from tests.evaluated import Pixels
from tests.tokenizers.tiny_autoencoder import write_images, write_weights

QUICK = ["--config", "mixture/default", "--num_stages", "4", "--schedule", "Constant", "--schedule.steps", "2",
         "--trainer.accelerator", "cpu"]  # fmt: skip
READS = ["--num_workers", "0", "--batch_size", "4", "--trainer.accelerator", "cpu"]
COMMANDS: dict[str, list[str]] = {
    "predict": [*QUICK, "--num_images", "20", "--batch_size", "4", "--output", "out"],
    "evaluate": ["drawn.npz", "--reference", "drawn.npz", "--features", "tests.evaluated.Pixels", *READS],
    "cache": ["images", "out", "--image_size", "32", "--vae", "vae.safetensors", "--vae.channels", "32",
              "--vae.multipliers", "[1, 1]", "--vae.blocks", "1", "--vae.latent_channels", "1", *READS],
    "search": ["--config", "mixture/search", "--num_stages", "4", "--rungs", "[60, 120]", "--batch_size", "20",
               "--profile_samples", "40", "--evaluations", "24", "--output", "out"],
    "bench": [*QUICK, "--repeats", "1", "--output", "out"],
}  # fmt: skip
WORK = {"evaluate": (Pixels, "forward"), "cache": (Autoencoder, "moments")}
"""What a command does over and over."""

End = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_weights(folder / "vae.safetensors")
    write_images(folder / "images", 13)
    drawn = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "drawn.npz", drawn)
    return folder


@pytest.fixture
def ended(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[End]:
    """Runs a command where its inputs are, and gives its exit status and what it wrote to standard error."""
    for entry in inputs.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def run(command: str, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"disa-{command}", *COMMANDS[command], *options])
        try:
            getattr(start, command)()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def instead(patch: pytest.MonkeyPatch, command: str, act: Callable[[], object], after: int = 9) -> None:
    """Has a command act in the middle of its work, when that has been done so often."""
    kind, name = WORK.get(command, (MixtureAR, "propose"))
    work, calls = getattr(kind, name), itertools.count(1)

    def counted(*args: Any, **options: Any) -> Any:
        if next(calls) == after:
            act()
        return work(*args, **options)

    patch.setattr(kind, name, counted)


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [*((command, signal.SIGTERM, 143) for command in COMMANDS), ("predict", signal.SIGINT, 130),
     ("cache", signal.SIGINT, 130)],
)  # fmt: skip
def test_a_signal_ends_a_command_with_one_line(
    command: str, number: int, status: int, ended: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        instead(patch, command, lambda: signal.raise_signal(number), after=3 if command in WORK else 9)
        got, line = ended(command)
    assert got == status
    assert line.splitlines()[-1] == f"disa-{command}: interrupted by {signal.Signals(number).name}"
    assert command == "search" or line.count("\n") == 1  # whose progress bars are there, too


@pytest.mark.parametrize("command", ["predict", "cache"])
def test_what_was_written_before_a_signal_is_gone_on_with(
    command: str, ended: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        instead(patch, command, lambda: signal.raise_signal(signal.SIGTERM))
        assert ended(command)[0] == 143
    kept = {file: file.stat().st_mtime_ns for file in Path("out").glob("0*")}
    assert kept and ended(command) == (0, "")
    assert len(list(Path("out").glob("0*"))) > len(kept)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


INTERRUPTED_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from disa_framework.cli.start import {command}
{command}()
"""


@pytest.mark.parametrize("command", ["predict", "download"])
def test_an_interrupt_before_anything_is_imported_is_one_line(command: str) -> None:
    program = [sys.executable, "-c", INTERRUPTED_AT_IMPORT.format(command=command)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, f"disa-{command}: interrupted by SIGINT\n")


TWO_PROCESSES = """
import os, subprocess, sys, time, types
from pathlib import Path

def convert():
    if sys.argv[1:]:
        Path("child").write_text(str(os.getpid()))
    else:
        subprocess.Popen([sys.executable, *sys.argv, "beside"])
    time.sleep(30)

for name in ("cli.convert", "runtime.memory"):  # PyTorch would take seconds
    sys.modules[f"disa_framework.{name}"] = types.SimpleNamespace(convert=convert, keep_freed_memory=bool)
from disa_framework.cli.start import convert
convert()
"""


def test_processes_beside_the_first_end_when_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    with subprocess.Popen([sys.executable, "two.py"], cwd=tmp_path) as first:
        while not (tmp_path / "child").exists() or not (pid := (tmp_path / "child").read_text()):
            time.sleep(0.01)
        first.kill()
    deadline = time.monotonic() + 15
    while (running := is_running(int(pid))) and time.monotonic() < deadline:
        time.sleep(0.05)
    if running:
        os.kill(int(pid), signal.SIGKILL)
    assert not running


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# --- what a command lacks ---------------------------------------------------------------------------------


def cuda_is_full() -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79.1 GiB")


NO_MEMORY: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(2**60), "numpy": lambda: np.empty(2**55), "python": lambda: bytearray(2**62),
    "cuda": cuda_is_full,
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind"), [*(("predict", kind) for kind in NO_MEMORY), ("bench", "torch"), ("evaluate", "numpy")]
)
def test_too_little_memory_is_one_line(command: str, kind: str, ended: End, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, command, NO_MEMORY[kind], after=2)
    status, line = ended(command)
    assert status == 1 and line.count("\n") == 1
    assert "error: not enough memory" in line and "--batch_size" in line


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, ()),
        ({"SLURM_NTASKS": "four"}, ()),
        ({"TORCHELASTIC_RUN_ID": "1"}, ("--trainer.strategy", "ddp")),
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "x"}, ("--trainer.strategy", "ddp")),
    ],
)
def test_an_environment_that_lightning_cannot_start_in_is_one_line(
    variables: dict[str, str], options: Sequence[str], ended: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, line = ended("predict", *options)
    assert status == 1 and line.count("\n") == 1
    assert f"{next(iter(variables))}={next(iter(variables.values()))}" in line and "SLURM_JOB_NAME=bash" in line


@pytest.mark.parametrize(("command", "count"), [("predict", "99"), ("evaluate", "10000"), ("bench", "99")])
def test_more_processes_than_cores_are_refused(command: str, count: str, ended: End) -> None:
    status, line = ended(command, "--trainer.accelerator", "cpu", "--trainer.devices", count)
    assert status == 1 and line.count("\n") == 1 and "--trainer.devices" in line and count in line


# --- where its output goes --------------------------------------------------------------------------------


@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_closed_pipe_ends_a_command_quietly(bar: str, ended: End, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert ended("predict", "--trainer.enable_progress_bar", bar) == (141, "")


@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_full_disk_behind_standard_output_is_one_line(bar: str, ended: End, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status, line = ended("predict", "--trainer.enable_progress_bar", bar)
    assert status == 1 and line.count("\n") == 1 and "No space left" in line


@pytest.mark.parametrize("command", ["predict", "cache"])
def test_a_folder_that_is_deleted_meanwhile_is_one_line(
    command: str, ended: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, command, lambda: shutil.rmtree("out"))
    status, line = ended(command)
    assert status == 1 and line.count("\n") == 1 and "out" in line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_terminal_without_unicode_shows_what_it_can(
    encoding: str, bar: str, ended: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    with io.TextIOWrapper(shown, encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert ended("predict", "--output", "Käfer–✓", "--trainer.enable_progress_bar", bar) == (0, "")
        assert b"20 images" in shown.getvalue()
