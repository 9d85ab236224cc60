"""What is asked for in turn, and how many samples that makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from disa_framework.cli.common import make_parser, parse
from disa_framework.cli.drawing import add_drawing
from disa_framework.data.conditions import ConditionReader, Labels, Prompts
from disa_framework.models import ARDiffusionModel
from disa_framework.sampling.condition import Condition
from disa_framework.toy.mixture import MixtureAR
from tests.prompted import PromptedMixture

MODEL = MixtureAR(num_classes=3)


@dataclass(frozen=True)
class Phones(ConditionReader):
    """A dictionary for five samples."""

    def read(self, model: ARDiffusionModel) -> Condition:
        return {"phones": torch.zeros(5, 7), "lengths": torch.arange(5), "texts": list("abcde")}


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "tag": "x"}) + "\n" for text in ("a dog", "two cats")))
    return str(path)


@pytest.mark.parametrize(
    ("reader", "asked", "in_turn", "count"),
    [
        (Labels(), None, [0, 1, 2], 64),
        (Labels(), 5, [0, 1, 2], 5),
        (Labels((2, 1)), None, [2, 1], 64),
        (Labels((2, 1), each=3), None, [2, 2, 2, 1, 1, 1], 6),
        (Labels(each=2), 6, [0, 0, 1, 1, 2, 2], 6),
    ],
)
def test_labels_come_in_turn_or_class_after_class(
    reader: Labels, asked: int | None, in_turn: list[int], count: int
) -> None:
    condition = reader.read(MODEL)
    assert condition.tolist() == in_turn and condition.dtype == torch.int64
    assert reader.count(condition, asked) == count and reader.prompts == []


@pytest.mark.parametrize(("each", "asked", "count"), [(None, None, 8), (None, 5, 5), (3, None, 6), (3, 6, 6)])
def test_prompts_come_in_turn(prompts: str, each: int | None, asked: int | None, count: int) -> None:
    reader = Prompts(prompts, each)
    condition = reader.read(PromptedMixture())
    assert condition == ["a dog", "two cats"] and reader.count(condition, asked) == count
    assert reader.prompts == [{"prompt": text, "tag": "x"} for text in condition]


def test_a_dictionary_asks_for_as_many_samples_as_it_has() -> None:
    condition = Phones().read(MODEL)
    assert Phones().count(condition, None) == 5 and Phones().count(condition, 12) == 12 and Phones().prompts == []


def test_numbers_that_contradict_each_other_are_refused(prompts: str) -> None:
    readers: dict[str, ConditionReader] = {"3 classes": Labels(each=2), "2 prompts": Prompts(prompts, each=2)}
    for asked, reader in readers.items():
        with pytest.raises(ValueError, match=f"{asked} with 2 images each are . images, not 5"):
            reader.count(reader.read(MODEL), 5)


@pytest.mark.parametrize("labels", [(), (1.5,), (True,), ("010",), (0, None)], ids=str)
def test_labels_are_whole_numbers(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels must be the numbers of at least one class"):
        Labels(labels)


def understood(*options: str) -> Any:
    parser = make_parser("disa-predict", "")
    add_drawing(parser)
    return parse(parser, ["--config", "mixture/default", *options])


@pytest.mark.parametrize("option", ["--labels", "--condition.labels"])
def test_labels_on_the_command_line_are_decimal(option: str, tmp_path: Path) -> None:
    kind = ["--condition", "Labels"] if "." in option else []
    (tmp_path / "c.yaml").write_text("labels: [007, 010, 8]")
    assert understood("--config", str(tmp_path / "c.yaml")).labels == [7, 10, 8]
    found = understood(*kind, option, "[007, 010, +8]")
    assert list(found.condition.init_args.labels if kind else found.labels) == [7, 10, 8]


@pytest.mark.parametrize("label", ["0x10", "1_0", "1e1", "true", "0b1", "0o7", "1:30", "1.0"])
def test_what_is_no_decimal_number_is_no_label(label: str) -> None:
    for options in (["--labels", f"[{label}]"], ["--condition", "Labels", "--condition.labels", f"[1, {label}]"]):
        with pytest.raises(SystemExit):
            understood(*options)


def test_a_model_without_classes_asks_for_something_else() -> None:
    with pytest.raises(ValueError, match="draws no classes: give --prompts"):
        Labels().read(PromptedMixture())
