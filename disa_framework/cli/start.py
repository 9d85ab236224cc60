"""Where the programs begin: `disa predict …`, and `disa-predict …`, which is the same."""

import sys
from functools import partial

from disa_framework.cli.running import run

COMMANDS = {
    "predict": "draws images",
    "search": "finds how to draw: schedule, solver, stages, for a limit on time or on quality",
    "fit": "trains a model",
    "app": "shows a page in the browser, on which two ways to draw are compared",
    "evaluate": "measures images: FID, Inception Score, precision and recall",
    "diagnose": "shows stage by stage why annealing works",
    "bench": "times draws, and says where the time goes",
    "download": "fetches what is published",
    "convert": "reads weights of any layout into one file",
    "cache": "writes the latents of an image folder",
    "env": "prints versions and devices, for a report of a bug",
}
"""What they do, by name."""

app, bench, cache, convert, diagnose, download, evaluate, fit, predict, search = (
    partial(run, command)
    for command in ("app", "bench", "cache", "convert", "diagnose", "download", "evaluate", "fit", "predict", "search")
)


def disa() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        run(name)
    elif name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {command:<{width}}  {what}" for command, what in COMMANDS.items())
        print("usage: disa COMMAND [--option VALUE ...]\n", *lines, "\ndisa COMMAND --help explains.", sep="\n")
    else:
        print(f"disa: error: no command {name}: give one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
