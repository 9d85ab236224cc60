"""What docs/adding-a-model.md shows runs, and what it quotes is there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from disa_framework import SamplingConfig
from disa_framework.cli.fit import fit
from disa_framework.cli.predict import predict
from disa_framework.cli.search import search

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/adding-a-model.md"
TEXT = PAGE.read_text()
QUOTES = re.findall(r"```python (\S+)\n(.*?)```", TEXT, re.DOTALL)  # with the file they are taken from
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^    PYTHONPATH=\. (disa-\w+) (.*)$", TEXT.replace("\\\n", ""), re.MULTILINE)
FEW_STEPS = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
SMALL = [
    "--profile_samples", "4", "--calibration.menu", "[2, 4, 12]", "--calibration.stride", "7",
    "--trainer.accelerator", "cpu",
]  # fmt: skip


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


def test_the_page_quotes_both_models_and_runs_code() -> None:
    assert {path.split("/")[-1] for path, _ in QUOTES} == {"causal.py", "diffusion_head.py", "sequence.py"}
    assert len(BLOCKS) == 3 and [name for name, _ in COMMANDS] == 2 * ["disa-fit", "disa-predict", "disa-search"]


def test_images_are_trained_drawn_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, draw, find = (shlex.split(command) for _, command in COMMANDS[:3])
    fit([*train, *FEW_STEPS])
    assert len(list(predict([*draw, "--num_images", "2"]).path.glob("*.png"))) == 2
    search([*find, *SMALL])
    assert SamplingConfig.load("found/best.yaml").stages == 8


def test_sequences_are_trained_drawn_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phones.jsonl").write_text("[3, 1, 4]\n[1]\n[0, 2, 4, 1, 3, 0, 2, 4]\n")
    train, draw, find = (shlex.split(command) for _, command in COMMANDS[3:])
    fit([*train, *FEW_STEPS])
    drawn = [np.load(file) for file in sorted(predict(draw).path.glob("*.npy"))]
    assert [sample.shape for sample in drawn] == 3 * [(8, 2)]
    assert [int(sample.any(axis=1).sum()) for sample in drawn] == [3, 1, 8]
    search([*find, *SMALL])
    assert SamplingConfig.load("found/best.yaml").stages == 8
    assert torch.tensor(SamplingConfig.load("found/best.yaml").budget).sum() <= 64
