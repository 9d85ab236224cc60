"""Frozen dataclasses as plain data, for YAML and for comparing, and back, without calling what a file names blindly.

A class that is one of a family (a schedule, a solver, a grid) is written as `class_path` and `init_args`; any other
dataclass as its fields.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

_PACKAGE = "disa_framework"

MOST = 1_000_000
"""Of what has a size or is counted: more is a slip of the pen, and would take all memory."""
LATER = {"later": True}
"""Metadata of a field that came after files with its class: `dump` leaves it out where it has its default, so that what
was written before is still the same."""
_MOST = {"depth": 1000, "layers": 1000, "dropout": 1, "temperature": 10}
"""Of arguments by the last word of their names."""


def check_numbers(make: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Checks the numbers that a network is made with: whole ones are sizes, others are shares and factors.

    Args:
        make: its constructor, whose annotations say which is which.
        given: its arguments by name, as `locals()` has them.

    Raises:
        ValueError: a size is not a whole number from 1 on (`num_classes`: from 0 on), another number is negative or
            not finite, a dropout is above 1, or one is larger than anybody can mean.
    """
    for name, hint in make.__annotations__.items():
        if hint not in ("int", "float"):
            continue
        value, whole = given[name], hint == "int"
        low, high = (
            int(whole and name != "num_classes"),
            _MOST.get(name.rpartition("_")[2], MOST if whole else math.inf),
        )
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or math.isinf(value):
            bounds = f"from {low} to {high:,}" if high < math.inf else "from 0 on"
            raise ValueError(f"{name} must be a {'whole ' * whole}number {bounds}, got {value!r}")


def dump(value: Any) -> Any:
    """A value as what YAML and JSON hold: dictionaries, lists, texts, numbers.

    Raises:
        TypeError: a part of it is neither a dataclass nor plain.
    """
    if is_dataclass(value) and not isinstance(value, type):
        content = {name: dump(part) for name, part in _given(value)}
        return {"class_path": path_of(type(value)), "init_args": content} if _family(type(value)) else content
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)  # numpy's are floats, too, which YAML does not know
    raise TypeError(f"{value!r} is no plain value, nor a dataclass of such")


def text(value: Any) -> str:
    """A value as `repr` has it, without what `dump` leaves out: a name that stays when classes get further fields."""
    if is_dataclass(value) and not isinstance(value, type):
        given = ", ".join(f"{name}={text(part)}" for name, part in _given(value))
        return f"{type(value).__qualname__}({given})"
    if isinstance(value, list | tuple) and any(map(is_dataclass, value)):
        return f"({', '.join(map(text, value))})"
    return repr(value)


def load(kind: type[Any], content: Any) -> Any:
    """A value of a kind, from what `dump` made of one.

    Args:
        kind: a dataclass, which may be of a family, or the abstract base of one.

    Raises:
        ValueError: the content names no class of this family, or does not fit its fields.
    """
    if _family(kind) and isinstance(content, str):
        content = {"class_path": content}
    if _family(kind) and isinstance(content, Mapping) and isinstance(content.get("class_path"), str):
        return _filled(find(kind, content["class_path"]), content.get("init_args") or {})
    if inspect.isabstract(kind):
        raise ValueError(f"expected a {kind.__name__} by its class_path and init_args, got {content!r}")
    return _filled(kind, content)


def find(kind: type[Any], path: str) -> type[Any]:
    """The class of a family that a text names: alone, where it is known, or by its path.

    A module is imported only if it is one of this package: whoever has classes elsewhere imports them first.

    Raises:
        ValueError: there is none, or it is of another kind.
    """
    module, _, name = path.rpartition(".")
    if module.split(".")[0] == _PACKAGE and module not in sys.modules:
        try:
            import_module(module)
        except ImportError as error:
            raise ValueError(f"there is no module {module}: {error}") from None
    classes = known(kind)
    found = getattr(sys.modules.get(module), name, None) if module else classes.get(name)
    if not isinstance(found, type) or not issubclass(found, kind) or inspect.isabstract(found):
        raise ValueError(
            f"{path} is no {kind.__name__}; known are {', '.join(classes)}, and what has been imported: import a class "
            "of your own first, or name it in an option of the command, too, such as --schedule my_package.MyClass"
        )
    return found


def known(kind: type[Any]) -> dict[str, type[Any]]:
    """The classes of a family that have been imported, by name, in the order of the alphabet."""
    return dict(sorted(((child.__name__, child) for child in _descendants(kind)), key=lambda item: item[0]))


def path_of(kind: type[Any]) -> str:
    """The shortest path that a class can be imported by."""
    parts = kind.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), kind.__qualname__, None) is kind:
            return f"{module}.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _given(value: Any) -> Iterator[tuple[str, Any]]:
    """Fields that a value is made of by name, but for those that came later and have their default."""
    for field in fields(value):
        part = getattr(value, field.name)
        if field.init and not ("later" in field.metadata and part == field.default):
            yield field.name, part


def _family(kind: type[Any]) -> bool:
    """Whether a class is one of several that can stand in a place."""
    return any(inspect.isabstract(base) for base in kind.__mro__)


def _descendants(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield from _descendants(child)
        if not inspect.isabstract(child) and not child.__name__.startswith("_"):
            yield child


def _filled(kind: type[Any], content: Any) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"a {kind.__name__} is made of its fields by name, got {content!r}")
    known = {field.name: field for field in fields(kind) if field.init}
    if unknown := [str(name) for name in content if name not in known]:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}: it has {', '.join(known) or 'no fields'}")
    if missing := [n for n, f in known.items() if n not in content and f.default is f.default_factory is MISSING]:
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _part(hints[name], value) for name, value in content.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} does not take {dict(content)}: {error}") from error


def _part(hint: Any, value: Any) -> Any:
    """A field's value; parts that are dataclasses or of a family are made of their content."""
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,) and isinstance(value, list | tuple):
        return tuple(_part(get_args(hint)[0], item) for item in value)
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and (is_dataclass(option) or inspect.isabstract(option)) and value is not None:
            return value if isinstance(value, option) else load(option, value)
    if value is None and type(None) not in options and hint is not Any:
        raise ValueError("null where a value belongs")
    return _frozen(value)


def _frozen(value: Any) -> Any:
    """Lists, which is what YAML has, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
