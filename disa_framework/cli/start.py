"""Where the programs begin."""

from functools import partial

from disa_framework.cli.running import run

bench, cache, convert, diagnose, download, evaluate, fit, predict, search = (
    partial(run, command)
    for command in (
        "bench.benchmark", "cache.cache", "convert.convert", "diagnose.diagnose", "download.download",
        "evaluate.evaluate", "fit.fit", "predict.predict", "search.search",
    )
)  # fmt: skip
"""The commands, one module each: parsing and wiring, nothing else."""
