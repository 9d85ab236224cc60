"""Where the programs begin."""

from functools import partial

from disa_framework.cli.running import run

app, bench, cache, convert, diagnose, download, evaluate, fit, predict, search = (
    partial(run, command)
    for command in ("app", "bench", "cache", "convert", "diagnose", "download", "evaluate", "fit", "predict", "search")
)
