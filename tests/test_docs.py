"""What docs/adding-a-model.md shows runs, and what it quotes is there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/adding-a-model.md"
TEXT = PAGE.read_text()
QUOTES = re.findall(r"```python (\S+)\n(.*?)```", TEXT, re.DOTALL)  # with the file they are taken from
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^    PYTHONPATH=\. (disa-\w+) (.*)$", TEXT.replace("\\\n", ""), re.MULTILINE)


def my_package() -> ModuleType:
    """The page's code, run block after block as the module that the page calls it."""
    module = ModuleType("my_package")
    sys.modules[module.__name__] = module
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    return module


PACKAGE = my_package()
TestRowAR = PACKAGE.TestRowAR  # the contract suite, as the page subclasses it


def test_the_page_draws_latents() -> None:
    assert PACKAGE.latents.shape == (10, 1, 8, 8) and PACKAGE.latents.isfinite().all()


@pytest.mark.parametrize(("path", "quote"), QUOTES, ids=[quote.split("\n")[0].strip() for _, quote in QUOTES])
def test_a_quoted_part_is_in_its_file(path: str, quote: str) -> None:
    assert quote in (ROOT / path).read_text()


def test_the_page_quotes_causal_ar_and_runs_code() -> None:
    assert len(QUOTES) >= 5 and len(BLOCKS) == 3 and [name for name, _ in COMMANDS] == ["disa-fit", "disa-predict"]


def test_the_commands_train_and_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (_, train), (_, draw) = COMMANDS
    fit([*shlex.split(train), "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"])
    folder = predict([*shlex.split(draw), "--num_images", "2"])
    assert len(list(folder.path.glob("*.png"))) == 2
