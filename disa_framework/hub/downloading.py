"""Published files by name: fetched, and the weights of models converted: what `disa-download` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from disa_framework.hub.converting import convert
from disa_framework.hub.fetching import fetch, fetch_from_hub
from disa_framework.hub.published import PUBLISHED, Published
from disa_framework.progress import Progress, silent

FOLDER = "checkpoints"
"""Where things go if nothing else is said."""


def download(
    name: str,
    folder: str | Path = FOLDER,
    url: str | None = None,
    keep: bool = False,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Fetches what is published under a name, as far as it is not there yet, and converts the weights of a model.

    Args:
        name: in `disa_framework.hub.published.PUBLISHED`.
        folder: where it goes; several files go into one of their own in it.
        url: another address of the same file.
        keep: keep the file of a model as it was published, too.
        progress: is told how many MiB of how many are there.

    Returns:
        The files: of a model the converted one.

    Raises:
        OSError: it cannot be fetched, or not to its end; the message says how to get it otherwise.
        ValueError: an unknown name; an address that may not be used; a file that is not the one of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"nothing is known as {name!r}: {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    if url and len(published.addresses) > 1:
        raise ValueError(f"{name} has {len(published.addresses)} files, for which one address will not do")
    folder = Path(folder)
    if published.constructor is not None:
        return (_converted(name, published, folder, url, keep, progress),)
    places = _places(name, published, folder)
    for number, place in enumerate(places):
        _fetch(published, number, place, url, progress)
    return tuple(places)


def _places(name: str, published: Published, folder: Path) -> list[Path]:
    """Of its files: several have a folder of their own, and a model's single one has its name."""
    if len(published.addresses) > 1:
        return [folder / name / file for file in published.files]
    file = _file_name(published.addresses[0])
    return [folder / (file if published.constructor is None else f"{name}{Path(file).suffix}")]


def _converted(name: str, published: Published, folder: Path, url: str | None, keep: bool, progress: Progress) -> Path:
    """The converted file of a model."""
    target = folder / f"{name}.safetensors"
    if target.exists():
        return target
    places = _places(name, published, folder)
    for number, place in enumerate(places):
        _fetch(published, number, place, url, progress)
    original = places[0] if len(places) == 1 else folder / name
    try:
        found = convert(original, target).name
    except ValueError as error:
        raise ValueError(f"{error} (to fetch it again, remove {original})") from error
    if found != name:
        target.unlink()
        raise ValueError(f"{original} is {found}, not {name}: remove it")
    if not keep:
        _remove(places, original)
    return target


def _remove(places: Sequence[Path], original: Path) -> None:
    """Removes files, and the folders that they leave empty, up to the one that they lie in."""
    for place in places:
        place.unlink()
        while place != original and not any((place := place.parent).iterdir()):
            place.rmdir()


def _fetch(published: Published, number: int, place: Path, url: str | None, progress: Progress) -> None:
    """Fetches one of the files, unless it is there."""
    if place.exists():
        return
    address = url or published.addresses[number]
    try:
        if published.repo and not url:
            fetch_from_hub(published.repo, published.files[number], place, progress)
        else:
            digest = published.sha256[number] if published.sha256 else None
            fetch(address, place, published.mib, digest, progress)
    except OSError as error:
        raise OSError(
            f"{place.name} was not fetched ({error}): give the command again to go on, "
            f"or fetch {address} by other means, put it at {place}, and give the command again"
        ) from error


def _file_name(address: str) -> str:
    return PurePosixPath(urlsplit(address).path).name
