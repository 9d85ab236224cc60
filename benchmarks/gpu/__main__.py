"""Runs the parts one after the other, prints what they find, and keeps it in one file; see the package."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks import gpu
from disa_framework.files import write_atomically

SHARES = {
    "environment": 0.1, "agreement": 0.2, "waiting": 0.1, "distributed": 0.1, "mar": 0.2, "xar": 0.15, "flowar": 0.2,
    "tests": 0.1,
}  # fmt: skip
"""Of the time that there is, at most; what a part leaves is for those behind it."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs all parts; the number of findings that are failures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(gpu.__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=7.0, help="in all, at most")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"))
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    options = parser.parse_args(args)
    found: dict[str, Any] = {"dry": options.dry, "parts": {}}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    for place, name in enumerate(options.parts):
        rest = sum(SHARES[later] for later in options.parts[place:])
        seconds = (end - time.monotonic()) * min(1.0, 1.5 * SHARES[name] / rest)
        print(f"--- {name}, {seconds:.0f} s at most", flush=True)
        run(name, seconds, options.dry, found, options.output)
    failures = [
        f"{part}: {key}" for part, results in found["parts"].items() for key in results if _failed(results[key])
    ]
    print(f"--- {len(failures)} failed{''.join(f'; {name}' for name in failures)}; all in {options.output}")
    return len(failures)


def run(name: str, seconds: float, dry: bool, found: dict[str, Any], output: Path) -> None:
    """Runs one part in a process of its own, and writes the file after each of its findings."""
    results: dict[str, Any] = {}
    found["parts"][name] = results
    start, (reading, writing) = time.monotonic(), os.pipe()
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, str(writing), *["--dry"] * dry]
    with subprocess.Popen(command, pass_fds=[writing], start_new_session=True) as process, open(reading) as findings:
        os.close(writing)
        timer = Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))  # with all that it has started
        timer.start()
        for line in findings:
            key, results[key] = json.loads(line)
            print(f"{name}: {key}: {_short(results[key])}", flush=True)
            _write(output, found)
    timer.cancel()
    if process.returncode == -signal.SIGKILL:
        results["cut"] = f"after {seconds:.0f} s"
    elif process.returncode:
        results["process"] = {"error": f"exit status {process.returncode}"}
    results["seconds"] = round(time.monotonic() - start, 1)
    _write(output, found)


def _write(output: Path, found: dict[str, Any]) -> None:
    write_atomically(output, (json.dumps(found, indent=1) + "\n").encode())


def _failed(value: Any) -> bool:
    return isinstance(value, dict) and ("error" in value or value.get("ok") is False)


def _short(value: Any) -> str:
    """On one line, but for the traceback of an error."""
    return f"FAILED\n{value['error']}" if isinstance(value, dict) and "error" in value else json.dumps(value)


if __name__ == "__main__":
    sys.exit(bool(main()))
