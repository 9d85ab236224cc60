"""What is asked for in turn, and how many samples that makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

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


def test_a_model_without_classes_asks_for_something_else() -> None:
    with pytest.raises(ValueError, match="draws no classes: give --prompts"):
        Labels().read(PromptedMixture())
