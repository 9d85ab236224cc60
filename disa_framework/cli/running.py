"""How a command runs, and how it ends: done, refused with one line, or by a signal.

Nothing large is imported here, so that a command answers to Ctrl-C before PyTorch is there.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

DEBUG = "--debug"
_EXTRAS = {"gradio": "app"}
"""Of packages that are not in the extra `all`."""
_FIRST = "DISA_FIRST_PROCESS"
_PATIENCE = 10.0  # seconds for a process to end by itself when the first one has gone
_CLOSED_PIPE = 141  # 128 and the number of SIGPIPE

_LIBRARIES = {
    *sys.stdlib_module_names, "PIL", "diffusers", "fsspec", "huggingface_hub", "jsonargparse", "lightning",
    "lightning_utilities", "matplotlib", "numpy", "optuna", "rich", "safetensors", "sklearn", "sqlalchemy", "torch",
    "torch_fidelity", "torchmetrics", "torchvision", "tqdm", "transformers", "yaml",
}  # fmt: skip
_CHECKS = {"__init__", "__post_init__", "check", "read"}
"""Functions of somebody's own class whose errors say what is wrong with an option or a file."""
_SAY_WHY = _LIBRARIES - {"builtins", "torch"}
"""Whose own exceptions are about what they were given."""
_MEMORY = re.compile(r"allocator: |allocate memory|bad_alloc|out of memory|not enough memory|ALLOC_FAILED", re.I)
_SIZE = re.compile(r"allocate ([\d.]+ \w+)")
_READS_ENVIRONMENT = ("lightning.fabric.plugins.environments.", "lightning.fabric.utilities.rank_zero")
_OF_PROCESSES = re.compile(r"(\w+_)?RANK|WORLD_SIZE|MASTER_\w+|TORCHELASTIC_RUN_ID|SLURM_(NTASKS\w*|\w+ID)")


class Interrupted(BaseException):
    """A signal ends the command. It is no `Exception`, so that nothing takes it for an error and goes on."""


def run(command: str) -> None:
    """Runs a command, the function of that name in its module, which parses the arguments of the process.

    What a user can mend is one line on standard error and exit status 1; with `--debug` it is a traceback. SIGINT and
    SIGTERM end a command where it is, with one line and status 130 or 143: its files are whole or absent at any moment.
    """
    prog, debugging = f"disa-{command}", DEBUG in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != DEBUG]
    warnings.formatwarning = lambda message, *where, **line: without_passwords(f"{prog}: {message}\n")
    sys.excepthook = lambda *raised: _say("".join(traceback.format_exception(*raised)))
    os.environ["MPLBACKEND"] = "agg"  # pictures become files; a notebook's backend may not even be installed
    _show_what_can_be_shown()
    with _interruptible() as signals:
        beside_first = _ends_with_first()
        try:
            import_module("disa_framework.runtime.memory").keep_freed_memory()
            getattr(import_module(f"disa_framework.cli.{command}"), command)()
            sys.stdout.flush()
        except BaseException as error:
            status, line = _ending(error, signals)
            hidden = signals and beside_first  # the first process says it
            _say(f"{prog}: {line}" if line and not hidden else "")
            if line is None or (debugging and not signals):
                raise
            sys.exit(status)
        finally:
            del os.environ[_FIRST]


def without_passwords(text: str) -> str:
    """A text without what URLs have between `://` and `@`, and behind `?`; paths have `:/` left of them."""
    for given in re.findall("://(.+)@", "\n".join(sys.argv)):  # whatever a library makes of it
        text = text.replace(given, "…")
    return re.sub(r"(:/+\S*\?)\S+", r"\1…", re.sub(r"(:/+)\S*@", r"\1…@", text))


def quiet() -> None:
    """Leaves out what libraries say about themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*treespec.*is deprecated",
        "Couldn't infer the batch indices",
        "Total length of `DataLoader` across ranks is zero",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", message=message)


def _show_what_can_be_shown() -> None:
    """What a terminal has no character for is replaced."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Has SIGINT and SIGTERM raise `Interrupted`, and gives the list of those that have come."""
    signals: list[int] = []
    process = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() == process:  # and not one that loads data for it
            signals.append(number)
            raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        yield signals
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # whatever Python is at when it ends


def _ends_with_first() -> bool:
    """Whether Lightning has started this process beside a first one. It ends with that then, however that ends."""
    first, parent = os.environ.get(_FIRST), os.getppid()
    os.environ[_FIRST] = str(os.getpid())
    if first != str(parent):
        return False

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # whatever that waits for
        time.sleep(_PATIENCE)
        os._exit(1)  # it waits for the first process within a library

    threading.Thread(target=follow, daemon=True).start()
    return True


def _ending(error: BaseException, signals: list[int]) -> tuple[int, str | None]:
    """Exit status and line of a command that an exception has ended; no line, if its traceback helps."""
    if signals:  # whatever else they have brought about
        return 128 + signals[0], f"interrupted by {signal.Signals(signals[0]).name}"
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):  # as rich raises it
        return _CLOSED_PIPE, ""
    if not isinstance(error, Exception):
        return 1, None
    text = " ".join(str(error).split())
    calls = [
        (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and _MEMORY.search(text)):
        size = _SIZE.search(text)
        asked = f" for {size[1]}" if size else ""
        return 1, f"error: not enough memory{asked}: give a smaller --batch_size, or --precision bf16"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("disa_framework"):
        extra = _EXTRAS.get(error.name, "all")
        return 1, f"error: the package {error.name} is missing: pip install 'disa-framework[{extra}]'"
    if any(module.startswith(_READS_ENVIRONMENT) for module, _ in calls):
        return 1, f"error: {_environment(text)}"
    return 1, f"error: {text}" if _is_refusal(error, calls) else None


def _environment(text: str) -> str:
    """What Lightning says against the variables of the environment, and what can be done."""
    given = ", ".join(f"{name}={value}" for name, value in os.environ.items() if _OF_PROCESSES.fullmatch(name))
    return (
        f"Lightning cannot start as the environment says ({given}): {text.rstrip('.')}; for one process unset these, "
        "or set SLURM_JOB_NAME=bash within a job of SLURM; for several start with srun or torchrun"
    )


def _is_refusal(error: Exception, calls: list[tuple[str, str]]) -> bool:
    """Whether this package refuses something, or a library that it called, and says why. What comes from a model or a
    schedule of somebody's own is a bug, which its traceback helps to find, but where that checks what it is given."""
    packages = [module.partition(".")[0] for module, _ in calls]
    says_why = isinstance(error, ValueError | OSError) or type(error).__module__.partition(".")[0] in _SAY_WHY
    if not says_why and not (isinstance(error, TypeError | ModuleNotFoundError) and packages[-1] == "lightning"):
        return False
    own = [(module, name) for (module, name), package in zip(calls, packages, strict=True) if package not in _LIBRARIES]
    module, name = own[-1]
    return module.partition(".")[0] == "disa_framework" or name in _CHECKS


def _say(line: str) -> None:
    """Writes a line below a progress bar, and lets go of streams that nobody reads any more."""
    with suppress(OSError):
        if line:
            print("\n" * sys.stderr.isatty() + without_passwords(line), file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # which Python would meet again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
