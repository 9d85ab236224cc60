"""What the commands share: finding configurations, parsing, making a module, and errors of one line."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from disa_framework.callbacks.sample_writers import SampleWriter
from disa_framework.data.conditions import ConditionReader
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.feature_cache import FeatureCache
from disa_framework.runtime.memory import keep_freed_memory
from disa_framework.runtime.precision import settled_precision
from disa_framework.sampling.config import FIELDS, SamplingConfig
from disa_framework.schedules import StepSchedule
from disa_framework.solvers import Solver
from disa_framework.tokenizers import Tokenizer
from disa_framework.toy import classifier, digits, mixture  # noqa: F401  so that their classes are known by name

_PACKAGE = Path(__file__).parents[1]
_CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # of a wheel, of a checkout

_PLUGGABLE: dict[str, type[Any]] = {
    "model": ARDiffusionModel, "schedule": StepSchedule, "solver": Solver, "tokenizer": Tokenizer,
    "cache": FeatureCache, "condition": ConditionReader, "writer": SampleWriter,
}  # fmt: skip

_DEBUG = "--debug"
_LIBRARIES = {
    *sys.stdlib_module_names, "PIL", "diffusers", "huggingface_hub", "jsonargparse", "lightning", "numpy", "optuna",
    "safetensors", "sklearn", "sqlalchemy", "torch", "torch_fidelity", "torchmetrics", "transformers", "yaml",
}  # fmt: skip

# A class that a file names is built only where a class of its kind is wanted.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["unittest"])


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
    found = [name for child in kind.__subclasses__() for name in (child.__name__, *_names(child))]
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
    usage = f"{prog} --config NAME [--option VALUE ...] [{_DEBUG}]"
    parser = _Parser(prog=prog, usage=usage, description=description, formatter_class=_Help)
    parser.add_argument("--config", action=_FindConfig, help="Configuration, by path or name (digits/mar).")
    return parser


def add_sampling(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """The parts of a sampling config, each an option, and `--sampling` for a file with all of them."""
    help = "A sampling config, as disa-search finds and SamplingConfig.save writes; other options replace its parts."
    parser.add_argument("--sampling", type=str | None, help=help)
    parser.add_class_arguments(SamplingConfig, sub_configs=True, skip=set(skip))
    if "solver" not in skip:
        # With a class as the default, another one that is asked for would begin with its grid.
        parser.set_defaults({"solver": None})


def parse(parser: ArgumentParser, args: Sequence[str] | None) -> Namespace:
    """Adds the options of Lightning's trainer, and parses; `--precision`, if there is one, is the trainer's then."""
    _quiet()
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)  # last, for its forty options
    config = parser.parse_args(_with_sampling(parser, sys.argv[1:] if args is None else args))
    if config.get("sampling") is not None:
        raise ValueError("a configuration has the parts of a sampling config, not sampling: FILE, which is an option")
    if config.get("precision") is not None:
        config.trainer.precision = settled_precision(
            config.precision, config.trainer.precision, config.trainer.accelerator
        )
    return config


def _with_sampling(parser: ArgumentParser, args: Sequence[str]) -> list[str]:
    """The arguments with a sampling config as a configuration, behind all others and before single options."""
    files = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    for option in ("--config", "--sampling"):
        files.add_argument(option, action="append", default=[])
    given, rest = files.parse_known_args(args)
    for path in given.sampling:
        SamplingConfig.load(path)  # which looks at what is named before anything is made of it
    return [*(f"--config={path}" for path in (*given.config, *given.sampling)), *rest]


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """What the options describe; an error of a constructor is raised without all that jsonargparse tried besides."""
    try:
        return parser.instantiate(config)
    except ValueError as error:
        wrapped = str(error).startswith("Does not validate against any of the Union")
        raise (error.__cause__ if wrapped and error.__cause__ else error) from None


def sampling_of(init: Namespace) -> SamplingConfig:
    """The sampling config of instantiated options."""
    given = {name: init[name] for name in FIELDS if name in init}
    return SamplingConfig(**{name: value for name, value in given.items() if value is not None})


def make_module(init: Namespace, **more: Any) -> ARDiffusionModule:
    """The module of instantiated options; `more` replaces some."""
    names = ("model", "tokenizer", "compile", "attention", "optimization", "seed")
    given = {name: init[name] for name in names if name in init}
    return ARDiffusionModule(**{"sampling": sampling_of(init), **given, **more})


def run(prog: str, command: Callable[[], object]) -> None:
    """Runs a command; what a user can mend is one line on standard error and exit status 1, and a warning is a line.
    With `--debug` it is a traceback, too."""
    keep_freed_memory()
    debugging, sys.argv = _DEBUG in sys.argv, [argument for argument in sys.argv if argument != _DEBUG]
    warnings.formatwarning = lambda message, *where, **line: f"{prog}: {message}\n"
    try:
        command()
    except Exception as error:
        if debugging or not _is_refusal(error):
            raise
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _is_refusal(error: Exception) -> bool:
    """Whether this package refuses something, or a library that it called, and says why. What comes from a model or a
    schedule of somebody's own is a bug, which its traceback helps to find."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    says_why = isinstance(error, ValueError | OSError | MisconfigurationException)
    if not says_why and not (isinstance(error, TypeError) and packages[-1] == "lightning"):
        return False
    return [package for package in packages if package not in _LIBRARIES][-1] == "disa_framework"


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
