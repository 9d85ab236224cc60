"""`disa-download`: fetches published weights, goes on where a transfer was cut, and converts them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from disa_framework.cli.common import run
from disa_framework.cli.convert import convert_file
from disa_framework.models.published import PUBLISHED, Published

_DOWNLOAD = """Fetches published files; weights of models are converted, as disa-convert does.

names:
{names}

examples:
  disa-download kl16
  disa-download mar-base --to checkpoints

A transfer that was cut goes on where it was when the command is given again.
"""
_MIB = 2**20
_CHUNK = 1 << 20
_TOLERANCE = 0.01  # of a known size, which is rounded
_TIMEOUT = 60  # seconds without a byte


def download(args: Sequence[str] | None = None) -> None:
    """Fetches a published file; see `disa-download --help`."""
    options = _make_parser().parse_args(args)
    if options.name not in PUBLISHED:
        raise ValueError(f"nothing is known as {options.name!r}: {', '.join(PUBLISHED)}")
    published = PUBLISHED[options.name]
    if options.url and len(published.urls) > 1:
        raise ValueError(f"{options.name} has {len(published.urls)} files, for which one --url will not do")
    options.to.mkdir(parents=True, exist_ok=True)
    if published.constructor is None:
        _keep(options.name, published, options.to, options.url)
    else:
        _convert(options.name, published, options.to, options.url, options.keep)


def command() -> None:
    """The program `disa-download`."""
    run("disa-download", download)


def _make_parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:16} {published.description}" for name, published in PUBLISHED.items())
    parser = argparse.ArgumentParser(
        prog="disa-download", description=_DOWNLOAD.format(names=names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", help="What to fetch.")
    parser.add_argument("--to", type=Path, default=Path("checkpoints"), help="Folder to put it in.")
    parser.add_argument("--url", help="Another address of the same file.")
    parser.add_argument("--keep", action="store_true", help="Keep the file as it was published, too.")
    return parser


def _keep(name: str, published: Published, folder: Path, url: str | None) -> None:
    """Fetches what stays as it is: one file, or a folder of several."""
    several = len(published.urls) > 1
    folder = folder / name if several else folder
    folder.mkdir(exist_ok=True)
    for address in published.urls:
        place = folder / PurePosixPath(urlsplit(address).path).name
        fetch(url or address, place, published.mib)
        print(f"{place}: {published.description}")


def _convert(name: str, published: Published, folder: Path, url: str | None, keep: bool) -> None:
    """Fetches and converts the weights of a model."""
    target = folder / f"{name}.safetensors"
    if target.exists():
        print(f"{target} is there already")
        return
    (address,) = published.urls
    original = folder / f"{name}{PurePosixPath(urlsplit(address).path).suffix}"
    fetch(url or address, original, published.mib)
    try:
        found = convert_file(original, target)
    except ValueError as error:
        raise ValueError(f"{error} (to fetch it again, remove {original})") from error
    if found != name:
        target.unlink()
        raise ValueError(f"{original} is {found}, not {name}: remove it")
    if not keep:
        original.unlink()
    options = f"--config {published.config} --ckpt_path" if published.config else "--vae"
    print(f"draw with it: disa-predict … {options} {target}")


def fetch(url: str, path: Path, mib: int | None = None) -> None:
    """Fetches a file, unless it is there already.

    What has arrived lies in `path` with `.part` added, until it is whole.

    Args:
        url: its address.
        path: where it goes.
        mib: its known size in MiB.

    Raises:
        OSError: it cannot be fetched, or not to its end; the message says how to get it otherwise.
        ValueError: it has not the known size.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with _open(url, part.stat().st_size if part.exists() else 0) as response:
            start, total = _extent(response)
            _check_size(url, total, mib)
            _receive(response, part, start, total)
    except (HTTPException, OSError) as error:
        raise OSError(
            f"{path.name} was not fetched ({error}): give the command again to go on, "
            f"or fetch {url} by other means, put it at {path}, and give the command again"
        ) from error
    size = part.stat().st_size
    if total is not None and size < total:
        raise OSError(f"the transfer was cut after {size:,} of {total:,} bytes: give the command again to go on")
    part.replace(path)


def _open(url: str, start: int) -> HTTPResponse:
    """The answer to a request for all bytes from `start`; for the whole file where the server has none there."""
    headers = {"User-Agent": "disa-download", "Accept-Encoding": "identity"}
    try:
        ranged = {"Range": f"bytes={start}-"} if start else {}
        return urlopen(Request(url, headers={**headers, **ranged}), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        return urlopen(Request(url, headers=headers), timeout=_TIMEOUT)


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the size of the whole file."""
    if response.status == 206:  # bytes start-end/total
        place, _, total = response.headers["Content-Range"].removeprefix("bytes ").partition("/")
        return int(place.partition("-")[0]), int(total) if total != "*" else None
    length = response.headers["Content-Length"]
    return 0, int(length) if length else None


def _check_size(url: str, total: int | None, mib: int | None) -> None:
    if mib and total is not None and abs(total / _MIB - mib) > max(1, _TOLERANCE * mib):
        raise ValueError(f"{url} has {total / _MIB:,.1f} MiB instead of {mib:,}: it is not the published file")


def _receive(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    """Writes the answer behind the bytes before `start`."""
    bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
    with bar, part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
