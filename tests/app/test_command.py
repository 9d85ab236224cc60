"""`disa-app` shows its page, to this machine alone, until it is interrupted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from disa_framework.cli.app import app

PROGRAM = "from disa_framework.cli.start import app; app()"


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and where its page is, once it says so."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, "--trainer.accelerator", "cpu", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        yield process, next((word.rstrip(";") for word in line.split() if word.startswith("http")), "")
    finally:
        process.kill()
        process.communicate()


def test_it_shows_its_page_until_it_is_interrupted(tmp_path: Path) -> None:
    with running(tmp_path) as (process, address):
        assert process.stderr and address.startswith("http://127.0.0.1:"), process.stderr and process.stderr.read()
        assert b"MAR" in urlopen(address).read()
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))  # it listens to one address
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == "disa-app: interrupted by SIGINT\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "digits/mar"], "--ckpt_path"),
        (["--labels", "[99]"], "labels must lie in 0 … 9"),
        (["--host", "256.1.1.1"], "256.1.1.1"),
        (["--port", "99999"], "99999"),
    ],
)
def test_what_cannot_be_shown_is_refused(options: list[str], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        app(["--trainer.accelerator", "cpu", *options])


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(OSError, match=port):
            app(["--trainer.accelerator", "cpu", "--port", port])
