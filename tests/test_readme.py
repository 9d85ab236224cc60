"""What the README shows runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from disa_framework.cli.bench import benchmark
from disa_framework.cli.diagnose import diagnose
from disa_framework.cli.evaluate import evaluate
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search
from disa_framework.models.published import PUBLISHED

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROGRAMS = {
    "disa-bench": benchmark, "disa-diagnose": diagnose, "disa-evaluate": evaluate, "disa-fit": fit,
    "disa-predict": predict, "disa-search": search,
}  # fmt: skip
COMMANDS = re.findall(r"^    (disa-\w+ .*)$", TEXT.replace("\\\n", ""), re.MULTILINE)


def test_the_ten_lines_draw_latents() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(PYTHON[0], names)
    assert names["latents"].shape == (64, 1, 1, 16) and names["latents"].isfinite().all()


@pytest.mark.parametrize("code", PYTHON[1:])
def test_other_code_is_python(code: str) -> None:
    exec(code, {})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *args = shlex.split(command, comments=True)
    if name == "disa-download":
        assert args[0] in PUBLISHED
        return
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[name]([*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


def test_its_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert pictures and all((Path(__file__).parent.parent / path).is_file() for path in pictures)
