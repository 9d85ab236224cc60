"""Frozen dataclasses as plain data, and back."""

from __future__ import annotations

import json
import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from disa_framework import values
from disa_framework.schedules import Linear, PerStage, StepSchedule


class Shape(ABC):
    """A family of one's own."""

    @abstractmethod
    def area(self) -> float: ...


@dataclass(frozen=True)
class Square(Shape):
    side: float

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = ()
    weight: float | None = None


@dataclass(frozen=True)
class Outer:
    shape: Shape
    inner: Inner = Inner()
    extra: dict[str, Any] = field(default_factory=dict)
    maybe: Shape | None = None
    seen: list[int] = field(default_factory=list, init=False, compare=False)


VALUES = [
    Square(np.float64(1.5)),
    Outer(Square(2.0)),
    Outer(Square(2.0), Inner(("a", "b"), 0.5), {"x": 1}, Square(1.0)),
    Inner(weight=math.inf),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_is_dumped_is_loaded_again_through_yaml_and_json(value: Any) -> None:
    content = values.dump(value)
    assert values.load(type(value), content) == value
    assert values.load(type(value), yaml.safe_load(yaml.safe_dump(content))) == value
    assert values.load(type(value), json.loads(json.dumps(content))) == value
    assert values.dump(values.load(type(value), content)) == content


def test_a_member_of_a_family_is_written_by_its_shortest_path_and_any_other_by_its_fields() -> None:
    assert values.dump(Linear(9, 2)) == {
        "class_path": "disa_framework.schedules.Linear", "init_args": {"early": 9, "late": 2}
    }  # fmt: skip
    assert values.dump(Inner(("a",))) == {"names": ["a"], "weight": None}
    assert values.dump(PerStage((3, 1)))["init_args"] == {"steps": [3, 1]}


@pytest.mark.parametrize("value", [object(), torch.zeros(2), {1, 2}, Inner((object(),)), b"bytes"])  # type: ignore[arg-type]
def test_what_is_not_plain_is_not_dumped(value: Any) -> None:
    with pytest.raises(TypeError, match="no plain value"):
        values.dump(value)


def test_a_field_that_came_later_changes_no_name_until_it_is_used() -> None:
    def named(*fields: Any) -> Any:
        return make_dataclass("Circle", [("radius", float), *fields], frozen=True)

    before, after = named(), named(("squeeze", float, field(default=1.0, metadata=values.LATER)))
    for make in (values.dump, values.text):
        assert make(before(2.0)) == make(after(2.0)) != make(after(2.0, 0.5))
    nested = Inner((after(2.0), after(1.0, 0.5)))
    assert values.text(nested) == "Inner(names=(Circle(radius=2.0), Circle(radius=1.0, squeeze=0.5)), weight=None)"
    assert len({*map(values.text, VALUES)}) == len(VALUES)


@pytest.mark.parametrize("path", ["Square", f"{__name__}.Square"])
def test_a_class_of_ones_own_is_found_once_it_is_imported(path: str) -> None:
    assert values.find(Shape, path) is Square
    assert values.load(Shape, {"class_path": path, "init_args": {"side": 3}}) == Square(3)


BAD: dict[str, tuple[type[Any], Any]] = {
    "Outer needs shape": (Outer, {}),
    "no colour: it has shape, inner": (Outer, {"colour": 1}),
    "no seen": (Outer, {"shape": "Square", "seen": [1]}),
    "Square needs side": (Outer, {"shape": "Square"}),
    "made of its fields by name, got 3": (Outer, 3),
    r"made of its fields by name, got \[1\]": (Square, [1]),
    "Square has no edge: it has side": (Square, {"edge": 1}),
    "null where a value belongs": (Outer, {"shape": None}),
    "expected a Shape by its class_path and init_args, got 3": (Shape, 3),
    "got {'side': 3}": (Shape, {"side": 3}),
    "got {'class_path': 3}": (Shape, {"class_path": 3}),
    "Circle is no Shape; known are Square": (Shape, "Circle"),
    "Shape is no Shape": (Shape, "Shape"),
    "Linear is no Shape": (Shape, "disa_framework.schedules.Linear"),
    "Square has no edge": (Shape, {"class_path": "Square", "init_args": {"edge": 1}}),
}


@pytest.mark.parametrize("message", BAD)
def test_content_that_does_not_fit_is_refused(message: str) -> None:
    kind, content = BAD[message]
    with pytest.raises(ValueError, match=message):
        values.load(kind, content)


def test_nothing_outside_the_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("trap.Linear", "os.system", "trap", ""):
        with pytest.raises(ValueError, match="is no StepSchedule"):
            values.load(StepSchedule, {"class_path": path})
    assert "trap" not in sys.modules
