"""What the commands share: finding configurations, parsing, and errors of one line."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace
from lightning import Trainer

from disa_framework.cli.precision import settle_precision
from disa_framework.memory import keep_freed_memory
from disa_framework.models import ARDiffusionModel, Tokenizer
from disa_framework.module import ARDiffusionModule
from disa_framework.schedules import StepSchedule
from disa_framework.solvers import Solver

_PACKAGE = Path(__file__).parents[1]
_CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout

_PLUGGABLE = {"model": ARDiffusionModel, "schedule": StepSchedule, "solver": Solver, "tokenizer": Tokenizer}


def find_config(name: str) -> str:
    """Path of a configuration given by path, or by its name in the package: `digits/mar`.

    Raises:
        ValueError: naming those that there are.
    """
    candidates = [Path(name), *(folder / Path(name).with_suffix(".yaml") for folder in _CONFIG_FOLDERS)]
    for path in candidates:
        if path.is_file():
            return str(path)
    known = sorted(str(p.relative_to(f).with_suffix("")) for f in _CONFIG_FOLDERS for p in f.rglob("*.yaml"))
    raise ValueError(f"no configuration {name!r}: give the path of a file, or one of {', '.join(known)}")


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the examples."""


class _Parser(ArgumentParser):
    """Names the known classes where an unknown one was asked for."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for option, kind in _PLUGGABLE.items():
            if f'Parser key "{option}"' in message:
                message += (
                    f"\n  known for --{option}: {', '.join(_names(kind))}\n"
                    "  or a class of your own by its path: my_package.MyClass"
                )
        super().error(message, ex)


def _names(kind: type[Any]) -> list[str]:
    """Public subclasses by name."""
    found = [name for child in kind.__subclasses__()
        for name in (child.__name__, *_names(child))]
    return sorted({name for name in found if not name.startswith("_")})


class _FindConfig(ActionConfigFile):
    """`--config`, by path or by name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = find_config(values)
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, path, option_string)


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that reads configurations with `--config`."""
    usage = f"{prog} --config NAME [--option VALUE ...]"
    parser = _Parser(prog=prog, usage=usage, description=description, formatter_class=_Help)
    parser.add_argument("--config", action=_FindConfig, help="Configuration, by path or name (digits/mar).")
    return parser


def parse(parser: ArgumentParser, args: Sequence[str] | None) -> Namespace:
    """Adds the options of Lightning's trainer, and parses; `--precision`, if there is one, is the trainer's then."""
    _quiet()
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)  # last, for its forty options
    config = parser.parse_args(None if args is None else list(args))
    settle_precision(config, parser.prog)
    return config


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """What the options describe; an error of a constructor is raised without all that jsonargparse tried besides."""
    try:
        return parser.instantiate(config)
    except ValueError as error:
        wrapped = str(error).startswith("Does not validate against any of the Union")
        raise (error.__cause__ if wrapped and error.__cause__ else error) from None


def make_module(init: Namespace) -> ARDiffusionModule:
    """The module of instantiated options."""
    names = inspect.signature(ARDiffusionModule).parameters
    return ARDiffusionModule(**{name: init[name] for name in names if name in init})


def run(prog: str, command: Callable[[], object]) -> None:
    """Runs a command; what a user can mend is one line on standard error and exit status 1, and a warning is a line."""
    keep_freed_memory()
    warnings.formatwarning = lambda message, *where, **line: f"{prog}: {message}\n"
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(1)


def _quiet() -> None:
    """Leaves out what libraries say about themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*treespec.*is deprecated",
        "Couldn't infer the batch indices",
        "Total length of `DataLoader` across ranks is zero",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", message=message)
