"""What parsing refuses, in one line: the option, what it may be, what was given."""

from __future__ import annotations

import argparse
import inspect
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from jsonargparse import Namespace

from disa_framework import values
from disa_framework.cli.running import without_passwords

_KEY = re.compile(r'Parser key "([^"]+)":?')
_CLASS = re.compile(
    r"class_path '([\w.]+)':\s+(?:Option '(.+?)' is not accepted|the following arguments are req\w+: (.+))"
)
_NO_CLASS = re.compile(r"import path string|valid subclass|not allowed|module named|no attribute|subclass of")
_WANTED = re.compile(
    r"(list\[\w+\])|Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\]|(tuple with \d+ elem\w+))"
    r"|(Positive\w+):"
)
_GIVEN = re.compile(
    r"(?:Got value: |Given value: |import path string: |given class_path |Positive\w+: (?!int|does))'?(.+?)"
    r"(?:':| does|$)",
    re.M,
)
_NO_MODULE = re.compile(r"No module named '[\w.]+'")
_REASON = re.compile(r"^ *- (.+)", re.M)
_NULL = re.compile("None|Any|Optional|_empty")
_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null",
    "PositiveInt": "a whole number from 1 on", "list": "a list", "tuple": "a list", "dict": "options by name",
    "list[int]": "a list of whole numbers", "list[str]": "a list of texts",
}  # fmt: skip


class OneLine(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {without_passwords(message)}; see {self.prog} --help\n")


def in_one_line(message: str, prog: str, families: Mapping[str, type[Any]]) -> str:
    """What jsonargparse says in up to seventeen lines.

    Args:
        families: of the options that name a class.
    """
    option, reason = ".".join(dict.fromkeys(_KEY.findall(message))), _KEY.split(message)[-1]
    names = ", ".join(values.known(families[option])) if option in families else ""
    given = next((text for text in _GIVEN.findall(reason) if text != "None"), "null")
    if found := _CLASS.search(message):
        path, unknown, missing = found.groups()
        name, has = path.rpartition(".")[2], ", ".join(_arguments(path))
        return f"--{option}: {name} " + (f"has no {unknown}: it has {has}" if unknown else f"needs {missing}")
    if "is abstract" in reason:
        return f"--{option} has no class yet that an option could be of: give --{option} first, such as {names}"
    if _NO_CLASS.search(reason):
        known, absent = f"one of {names}, or one" if names else "one", _NO_MODULE.search(reason)
        where = f" ({absent[0]})" if absent else ""
        return f"--{option} must be a class, {known} of your own by its path: my_package.MyClass; got {given}{where}"
    if "Unable to load config" in reason and option != "config":
        return f"--{option} has options of its own: give these, as --{option}.NAME VALUE"
    if wanted := list(dict.fromkeys(next(filter(None, groups)) for groups in _WANTED.findall(reason))):
        outer = [_WORDS.get(w, w) for w in wanted if not any(w in other and w != other for other in wanted)]
        may_be = " or ".join(outer).replace(", ", " or ").replace("tuple with", "a list of")
        return f"--{option} must be {may_be}, got {given}"
    text = " ".join(reason.split())
    return f"--{option}: {text}" if option else f"{text}; see {prog} --help"


def _arguments(path: str) -> Mapping[str, inspect.Parameter]:
    """Of the class, or the function that makes one, at a path; of none that parsing has not imported."""
    module, _, name = path.rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    return inspect.signature(made).parameters if callable(made) else {}


def without_union(error: ValueError) -> BaseException:
    """Of an error in making one of several kinds, that of the kind which was tried in earnest."""
    if not str(error).startswith("Does not validate against any of the Union"):
        return error
    reasons = [text for text in _REASON.findall(str(error)) if not text.startswith("Expected a")]
    first = error.__cause__  # which has the traceback, too
    return ValueError(reasons[0]) if reasons and str(first).startswith("Expected a") else first or error


def refuse_blanks(content: Any, option: str = "") -> None:
    """Raises a ValueError for what jsonargparse lets pass: null where a class has an argument that cannot be, and
    numbers that are not finite."""
    if content == "null":  # which is a text, too
        raise ValueError(f"--{option} is null: leave it out, or give a value")
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"--{option} must be a finite number, got {content}")
    if isinstance(content, list | tuple):
        for part in content:
            refuse_blanks(part, option)
    if not isinstance(content, Namespace | Mapping):
        return
    known: Mapping[str, inspect.Parameter] = {}
    if isinstance(content.get("class_path"), str):
        known = _arguments(content["class_path"])
        content = content.get("init_args") or {}
    for name, part in (vars(content) if isinstance(content, Namespace) else content).items():
        place = f"{option}.{name}".lstrip(".")
        if name in known and part is None and not _NULL.search(f"{known[name].annotation}{known[name].default}"):
            raise ValueError(f"--{place} is null: leave it out, or give a value")
        if name not in known or part != known[name].default:
            refuse_blanks(part, place)
