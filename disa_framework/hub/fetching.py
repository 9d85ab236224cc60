"""One file from the network: whole and checked, or not there; a transfer that was cut goes on where it was."""

from __future__ import annotations

import hashlib
import os
import shutil
from http.client import HTTPException, HTTPResponse
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from disa_framework.hub.reading import instead
from disa_framework.hub.repository import library, reason
from disa_framework.progress import Progress, silent

_MIB = 2**20
_TOLERANCE = 0.01  # of a known size, which is rounded
_TIMEOUT = 60  # seconds without a byte
_LOCAL = ("127.0.0.1", "localhost")


def fetch(url: str, path: Path, mib: int | None = None, sha256: str | None = None, progress: Progress = silent) -> None:
    """Fetches a file from any address. What has arrived lies in `path` with `.part` added, until it is whole.

    Args:
        url: begins with https://, also where it leads to.
        path: where it goes.
        mib: its size in MiB, if that is known.
        sha256: its digest, if that is known.
        progress: is told how many MiB of how many are there.

    Raises:
        OSError: it cannot be fetched, or not to its end.
        ValueError: the address may not be used, or what is there is another file.
    """
    part = path.with_name(f"{path.name}.part")
    _check_address(url)
    try:
        with _open(url, part.stat().st_size if part.exists() else 0) as response:
            _check_address(response.url)
            start, total = _extent(response)
            if response.headers.get_content_type() == "text/html":
                raise OSError("what came is a web page")
            if mib and total and abs(total / _MIB - mib) > max(1, _TOLERANCE * mib):
                raise ValueError(f"{url} has {total / _MIB:,.1f} MiB instead of {mib:,}: it is not the published file")
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as file:
                file.truncate(start)
                while chunk := response.read(_MIB):
                    file.write(chunk)
                    progress(file.tell() // _MIB, (total or file.tell()) // _MIB)
    except HTTPException as error:
        raise OSError(f"{type(error).__name__} {error}") from error
    if total and part.stat().st_size < total:
        raise OSError(f"the transfer was cut after {part.stat().st_size:,} of {total:,} bytes")
    try:
        _check_content(part, url, sha256)
    except (OSError, ValueError):
        part.unlink()
        raise
    os.replace(part, path)


def fetch_from_hub(repo: str, file: str, path: Path, progress: Progress = silent) -> None:
    """Fetches a file of a repository of Hugging Face. What has arrived lies in the folder `path` with `.part` added.

    Raises:
        OSError: it cannot be fetched.
        ValueError: `huggingface_hub` is not installed.
    """
    hf_hub_download = library().hf_hub_download
    takes_bars = "tqdm_class" in signature(hf_hub_download).parameters  # older ones show their own alone
    bars = {"tqdm_class": _bar(progress)} if takes_bars else {}
    part = path.with_name(f"{path.name}.part")
    try:
        os.replace(hf_hub_download(repo, file, local_dir=part, **bars), path)
    except Exception as error:  # of several libraries
        raise OSError(reason(error)) from error
    shutil.rmtree(part)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise ValueError(f"an address begins with https://, this does not: {url}")


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


def _check_content(path: Path, url: str, sha256: str | None) -> None:
    """Raises an error if a file that has come whole is not the one that was asked for."""
    with path.open("rb") as file:
        if sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{url} has another SHA-256 than {sha256}: it is not the published file")
        file.seek(0)
        if kind := instead(file.read(256)):
            raise OSError(f"what came is {kind}")


def _bar(progress: Progress) -> Any:
    """A bar for `huggingface_hub` that shows nothing, and tells what it is told."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            progress(int(self.n) // _MIB, int(self.total or self.n) // _MIB)

    return Bar
