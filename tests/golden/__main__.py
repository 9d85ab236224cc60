"""`python -m tests.golden CASE_DIR…`: replays recorded runs and prints the largest relative errors."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from tests.golden.case import TOLERANCE
from tests.golden.replay import replay


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden",
        description=f"Replays recorded runs. A line a case: the largest relative error of every recorded "
        f"output. Exits with 1 if any is above {TOLERANCE:g}.",
    )
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    failed = 0
    for folder in parser.parse_args(arguments).cases:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="no integer stride")
                report = replay(folder)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            failed += 1
            print(f"FAIL {folder.name}: {type(error).__name__}: {error}")
            continue
        failed += not report.passes
        errors = " ".join(f"{name}={error:.1e}" for name, error in report.errors.items())
        print(f"{'ok  ' if report.passes else 'FAIL'} {folder.name}: {report.worst:.1e} ({errors})", flush=True)
    print(f"{failed} failed, tolerance {TOLERANCE:g}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
