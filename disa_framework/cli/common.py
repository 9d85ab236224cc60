"""What the commands share: finding configurations, parsing, and making a module."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse import Path as ConfigFile
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from lightning import Trainer

from disa_framework.callbacks.sample_writers import SampleWriter
from disa_framework.cli.refusals import OneLine, in_one_line, refuse_blanks, without_union
from disa_framework.cli.running import DEBUG, quiet, without_passwords
from disa_framework.data.conditions import ConditionReader
from disa_framework.files import CONFIG_FOLDERS, RECIPES, shipped
from disa_framework.hub.repository import HUB
from disa_framework.hub.sharing import shared_sampling
from disa_framework.models import ARDiffusionModel
from disa_framework.module import ARDiffusionModule
from disa_framework.runtime.devices import check_processes
from disa_framework.runtime.feature_cache import FeatureCache
from disa_framework.runtime.precision import settled_precision
from disa_framework.sampling.config import FIELDS, SamplingConfig
from disa_framework.sampling.order import TokenOrder
from disa_framework.sampling.stage_sizes import StageSizes
from disa_framework.schedules import StepSchedule
from disa_framework.solvers import DDPM, Grid, Solver
from disa_framework.tokenizers import Tokenizer
from disa_framework.toy import classifier, digits, fashion, mixture  # noqa: F401  so that their classes are known by name

_FAMILIES: dict[str, type[Any]] = {
    "model": ARDiffusionModel, "schedule": StepSchedule, "solver": Solver, "tokenizer": Tokenizer,
    "cache": FeatureCache, "order": TokenOrder, "stage_sizes": StageSizes, "condition": ConditionReader,
    "writer": SampleWriter, "solver.grid": Grid,
}  # fmt: skip

_SHOWN = {"--guidance.scale", "--optimization.lr", "--evaluate.reference"}
_SECTIONS = {"--guidance", "--trainer", "--evaluate", "--calibration", "--fitting", "--space", "--optimization"}
"""Options by whose parts alone `--help` shows, and options that take a file of such parts."""
_MORE = """
Parts of these go behind a dot: --schedule Linear --schedule.early 10, --solver.grid LogSNR. --schedule.help Linear
explains a class. --help_all explains all options, and Lightning's (--trainer.devices and so on).
"""

# A class that a file names is built only where a class of its kind is wanted.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["unittest"])

# Configurations are UTF-8, whatever the locale is.
ConfigFile.read_text = lambda self: Path(str(self.absolute)).read_text(encoding="utf-8")  # type: ignore[method-assign]

# Whole numbers are decimal: YAML takes 010 for 8, 0x10 for 16, and 1:30 for 90.
_INT, _Loader = "tag:yaml.org,2002:int", get_yaml_default_loader()
_Loader.yaml_implicit_resolvers = {
    letter: [form for form in forms if form[0] != _INT] for letter, forms in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile("[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_constructor(_INT, lambda loader, node: int(node.value))


def find_config(name: str) -> str:
    """Path of a configuration given by path, or by its name in the package: `digits/mar`.

    Raises:
        ValueError: naming those that there are.
    """
    path = Path(name) if Path(name).is_file() else shipped(Path(name).with_suffix(""), ".yaml")
    if path:
        return str(path)
    known = sorted(str(p.relative_to(f).with_suffix("")) for f in CONFIG_FOLDERS for p in f.rglob("*.yaml"))
    raise ValueError(f"no configuration {name!r}: give the path of a file, or one of {', '.join(known)}")


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the examples."""


class _ShortHelp(argparse.RawDescriptionHelpFormatter):
    """An option is its name; what it takes is said by its help."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(option for option in action.option_strings if not option.endswith("+"))

    def _expand_help(self, action: argparse.Action) -> str:
        return action.help or ""  # in which a % is one


class _AllHelp(argparse.Action):
    """Prints all options, with their types, defaults and known classes."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(ArgumentParser.format_help(parser), end="")
        parser.exit()


class _Parser(ArgumentParser):
    """Says in one line what is wrong, and in a screen what can be asked."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The command's own options; parts of these, and of Lightning's trainer, are left to `--help_all`."""
        formatter = formatter or _ShortHelp(self.prog, max_help_position=24, width=100)
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for group in self._action_groups:
            if own := [action for action in group._group_actions if _is_own(action)]:
                formatter.start_section((group.title or "options").partition(".")[0].rstrip(":"))
                formatter.add_arguments(own)
                formatter.end_section()
        return formatter.format_help() + _MORE

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of a class within, whose message becomes part of the whole one's
            super().error(message, ex)
        self.exit(2, f"{self.prog}: error: {in_one_line(without_passwords(message), self.prog, _FAMILIES)}\n")


class _FindConfig(ActionConfigFile):
    """`--config`, by path or by name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = find_config(values)
        except ValueError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, path, option_string)


def _is_own(action: argparse.Action) -> bool:
    """Whether an option is shown by `--help`."""
    name = next(iter(action.option_strings), "")
    return action.help != argparse.SUPPRESS and ("." not in name or name in _SHOWN) and name not in _SECTIONS


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that reads configurations with `--config`."""
    usage = f"{prog} --config NAME [--option VALUE ...] [{DEBUG}]"
    parser = _Parser(prog=prog, usage=usage, description=description, formatter_class=_Help)
    parser.add_argument("--help_all", action=_AllHelp, nargs=0, help="Explain all options, and exit.")
    parser.add_argument("--config", action=_FindConfig, help="Configuration, by path or name (digits/mar).")
    return parser


def add_sampling(parser: ArgumentParser, skip: Collection[str] = ()) -> None:
    """The parts of a sampling config, each an option, and `--sampling` for a file with all of them."""
    help = (
        "A sampling config, as disa-search finds and SamplingConfig.save writes, or a recipe that comes with the "
        "configuration: fast, balanced, best. Other options replace its parts."
    )
    parser.add_argument("--sampling", type=str | None, help=help)
    parser.add_class_arguments(SamplingConfig, sub_configs=True, skip=set(skip))
    if "solver" not in skip:
        # With an object as the default, another class that is asked for would begin with its grid.
        parser.set_defaults({"solver": None})


def parse(parser: ArgumentParser, args: Sequence[str] | None) -> Namespace:
    """Adds the options of Lightning's trainer, and parses; `--precision`, if there is one, is the trainer's then."""
    quiet()
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)  # last, for its forty options
    config = parser.parse_args(_with_sampling(parser, sys.argv[1:] if args is None else args))
    refuse_blanks(config)
    if config.get("sampling") is not None:
        raise ValueError("a configuration has the parts of a sampling config, not sampling: FILE, which is an option")
    check_processes(config.trainer.devices, config.trainer.accelerator)
    if config.get("precision") is not None:
        config.trainer.precision = settled_precision(
            config.precision, config.trainer.precision, config.trainer.accelerator
        )
    return config


def _with_sampling(parser: ArgumentParser, args: Sequence[str]) -> list[str]:
    """The arguments with a sampling config as a configuration, behind all others and before single options."""
    files = OneLine(prog=parser.prog, add_help=False, allow_abbrev=False)
    for option in ("--config", "--sampling"):
        files.add_argument(option, action="append", default=[])
    given, rest = files.parse_known_args(args)
    if given.sampling:
        _import_named(rest)
    recipes = [_find_recipe(name, given.config) for name in given.sampling]
    for path in recipes:
        SamplingConfig.load(path)  # which looks at what is named before anything is made of it
    options = {argument.partition("=")[0] for argument in rest}
    lone = "--solver" not in options and any(option.startswith("--solver.") for option in options)
    default = [f"--solver={DDPM.__name__}"] * lone  # whose option it is, where no configuration says another one
    return [*default, *(f"--config={path}" for path in (*given.config, *recipes)), *rest]


def _find_recipe(name: str, configs: Sequence[str]) -> str:
    """Path of a sampling config given by path, by its name among the recipes of a configuration, `fast`, or by that of
    a repository, `hf:user/name`."""
    if name.startswith(HUB):
        return str(shared_sampling(name))
    if Path(name).suffix or Path(name).is_file():
        return name
    known = recipes(configs)
    if name in known:
        return known[name]
    if known:
        raise ValueError(f"no recipe {name!r}: give the path of a sampling config, or one of {', '.join(known)}")
    raise ValueError(f"no sampling config at {name}, and no recipes come with this configuration")


def recipes(configs: Sequence[str]) -> dict[str, str]:
    """Paths of the recipes that come with configurations, by name: those of the first that has any."""
    own = [RECIPES / config for config in configs if not Path(config).is_absolute()]
    folders = filter(Path.is_dir, (*own, *(path.parent for path in own)))
    found = ({path.stem: str(path) for path in sorted(folder.glob("*.yaml"))} for folder in folders)
    return next(filter(None, found), {})


def _import_named(args: Sequence[str]) -> None:
    """Imports the modules of classes that options name, as the parser will, so that a file may name them, too."""
    for argument, following in pairwise([*args, ""]):
        option, _, value = argument.partition("=")
        module = (value or following).rpartition(".")[0]
        if option.removeprefix("--") in _FAMILIES and module:
            with suppress(ModuleNotFoundError):  # which the parser says
                import_module(module)


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """What the options describe; an error of a constructor is raised without all that jsonargparse tried besides."""
    try:
        return parser.instantiate(config)
    except ValueError as error:
        raise without_union(error) from None


def make_sampling(init: Namespace) -> SamplingConfig:
    """The sampling config of instantiated options."""
    given = {name: init[name] for name in FIELDS if name in init}
    return SamplingConfig(**{name: value for name, value in given.items() if value is not None})


def make_module(init: Namespace, **more: Any) -> ARDiffusionModule:
    """The module of instantiated options; `more` replaces some."""
    names = ("model", "tokenizer", "compile", "graphs", "attention", "optimization", "seed")
    given = {name: init[name] for name in names if name in init}
    return ARDiffusionModule(**{"sampling": make_sampling(init), **given, **more})
