"""Writing files that are either whole or absent, and telling whether they are of the same settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename into it: a reader, or a killed run, never meets half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def differing(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Names of the settings that are not those which a JSON file was written with, as text; empty if all are."""
    asked = json.loads(json.dumps(asked))
    return ", ".join(sorted(name for name in known.keys() | asked.keys() if known.get(name) != asked.get(name)))
