"""Where the programs begin."""

from functools import partial

from disa_framework.cli.running import run

bench, cache, convert, diagnose, download, evaluate, fit, predict, search = (
    partial(run, command)
    for command in ("bench", "cache", "convert", "diagnose", "download", "evaluate", "fit", "predict", "search")
)
