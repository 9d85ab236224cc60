"""The documentation's site is made, and its links lead somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from examples import ideas

ROOT = Path(__file__).parent.parent


def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    made = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "num_stages" in (tmp_path / "api/disa_framework/index.html").read_text()  # the reference, too
    assert "filling.png" in (tmp_path / "ideas/index.html").read_text()


def test_its_pictures_are_made_again_by_their_script(tmp_path: Path) -> None:
    ideas.main(["--output", str(tmp_path)])
    for name in ("filling.png", "grids.png"):
        with Image.open(tmp_path / name) as made, Image.open(ROOT / "docs" / name) as shown:
            assert made.size == shown.size
