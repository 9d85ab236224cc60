"""`disa-download`: fetches published weights, goes on where a transfer was cut, and converts them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from disa_framework import hub
from disa_framework.cli.printing import progress_bar
from disa_framework.cli.refusals import OneLine
from disa_framework.hub.downloading import FOLDER
from disa_framework.hub.published import PUBLISHED

_NAMES = "\n".join(f"  {name:16} {published.description}" for name, published in PUBLISHED.items())
_DOWNLOAD = f"""Fetches published files; weights of models are converted, as disa-convert does.

names:
{_NAMES}

examples:
  disa-download kl16
  disa-download mar-base --to checkpoints
  disa-download fashion-mnist

A transfer that was cut goes on where it was when the command is given again.
"""


def download(args: Sequence[str] | None = None) -> None:
    """Fetches what is published under a name; see `disa-download --help`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLine(prog="disa-download", description=_DOWNLOAD, formatter_class=formatter)
    parser.add_argument("name", help="What to fetch.")
    parser.add_argument("--to", dest="folder", default=FOLDER, help="Folder to put it in.")
    parser.add_argument("--url", help="Another address of the same file.")
    parser.add_argument("--keep", action="store_true", help="Keep the file as it was published, too.")
    options = vars(parser.parse_args(args))
    with progress_bar("MiB") as show:
        files = hub.download(**options, progress=show)
    published = PUBLISHED[options["name"]]
    print(*(f"{file}: {published.description}" for file in files), sep="\n")
    if published.constructor:
        use = f"--config {published.config} --ckpt_path" if published.config else "--vae"
        print(f"draw with it: disa-predict … {use} {files[0]}")
