"""What the README and the pages that begin the documentation show runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from disa_framework import SamplingConfig
from disa_framework.cli.app import app
from disa_framework.cli.bench import bench
from disa_framework.cli.diagnose import diagnose
from disa_framework.cli.evaluate import evaluate
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from disa_framework.hub.published import PUBLISHED

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROGRAMS = {
    "disa-app": app, "disa-bench": bench, "disa-diagnose": diagnose, "disa-evaluate": evaluate, "disa-fit": fit,
    "disa-predict": predict, "disa-search": search,
}  # fmt: skip
PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("getting-started", "app", "ideas", "searching")}
SHOWN = "".join([TEXT, *PAGES.values()])
COMMANDS = dict.fromkeys(re.findall(r"^    (disa-\w+ .*)$", SHOWN.replace("\\\n", ""), re.MULTILINE))


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in PYTHON:  # block after block, as a reader would
        exec(code, names)
    assert names["latents"].shape == (64, 1, 1, 16) and names["latents"].isfinite().all()
    baseline, found = names["module"].evaluations(), names["found"]
    assert 0.9 * baseline / 2.5 <= found.cost <= baseline / 2.5
    assert SamplingConfig.load("outputs/found/best.yaml") == found.sampling


@pytest.mark.parametrize("page", ["getting-started", "ideas"])
def test_code_of_a_page_runs(page: str) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    assert blocks
    for code in blocks:
        exec(code, names)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("found").mkdir()
    SamplingConfig().save("found/best.yaml")  # as the command before it leaves it
    name, *args = shlex.split(command, comments=True)
    if name == "disa-download":
        assert args[0] in PUBLISHED
        return
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[name]([*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


def test_its_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert pictures and all((ROOT / path).is_file() for path in pictures)
