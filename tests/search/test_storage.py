"""Storages: files that are full, cut, damaged or no database, and URLs whose passwords are told to nobody."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from disa_framework.search.plan import Plan
from disa_framework.search.storage import StorageError, open_storage

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # which is for whole optimizations


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def go_on(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial = study.ask()
        trial.set_user_attr("note", "long " * 2000)
        study.tell(trial, trial.suggest_float("x", 0, 1))


def study(path: Path, trials: int) -> optuna.Study:
    """One of so many trials more, in a file."""
    found = optuna.create_study(storage=open_storage(str(path)), study_name="a", load_if_exists=True)
    go_on(found, trials)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a study."""
    path = tmp_path_factory.mktemp("whole") / "study.db"
    study(path, 2)
    return path.read_bytes()


def cut(size: int) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, path.stat().st_size - size)


def blank(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:-size] + bytes(size))


@pytest.mark.parametrize(
    "damage",
    [
        cut(20), cut(4096), cut(50_000), blank(20), blank(4096), blank(50_000),
        lambda path: path.write_bytes(bytes(8192)),
        lambda path: path.write_text('{"op_code": 0, "worker_id": "a", "study_name": "a"}\n' * 9),  # a journal
        lambda path: path.write_text("number,state\n" * 50),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_or_no_database_is_named_and_left_as_it_is(
    damage: Callable[[Path], object], whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(whole)
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StorageError, match=f"the storage {path} fails: .*give another file") as said:
            open_storage(str(path))
        assert "\n" not in str(said.value) and path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path), f"sqlite:///{tmp_path}/no/study.db", f"{tmp_path}/file/study.db", "nosuch://host/db"):
        with pytest.raises(OSError, match=place.removeprefix("sqlite:///").removesuffix("/study.db")):
            open_storage(place)


@contextmanager
def quota(kibibytes: int) -> Iterator[None]:
    """For each file that is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kibibytes * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_study_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    path, held = tmp_path / "study.db", 0
    for kibibytes in (8, 160, 240):
        with quota(kibibytes), pytest.raises(StorageError, match=f"the storage {path} fails: .*start again"):
            study(path, 200)
        trials = study(path, 1).trials
        assert len(trials) > held and all(t.user_attrs["note"] == "long " * 2000 for t in trials if t.values)
        held = len(trials)
    assert held > 3


def test_a_storage_that_fails_later_is_named_too(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(whole)
    running = study(path, 0)
    cut(30_000)(path)
    with pytest.raises(StorageError, match=f"the storage {path} fails: "):
        go_on(running, 3)


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    for name in ("a?b#c%20{d}.db", "e f/g@h:i.db", "sqlite.log"):
        assert len(study(tmp_path / name, 1).trials) == 1
        assert sqlite3.connect(tmp_path / name).execute("SELECT count(*) FROM trials").fetchone() == (1,)


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://u:SECRET@host/x", "nosuch://u:SEC%40RET@host/x", "nosuch://host/x?password=SECRET", "nosuch://u:SEC@RET@h/x",
        "nosuch://h/x?password=SEC@RET", "nosuch://u:1/SECRET@h/x", "nosuch://u:S?ECRET@h/x", "nosuch://u:SECRET@h:port/x",
        "nosuch://u:{SECRET}@h/x", "no-such://u:SECRET@h/x", "nosuch:///?odbc_connect=PWD%3DSECRET", "nosuch://u:SEC#RET@h",
    ],
)  # fmt: skip
def test_a_password_is_told_to_nobody(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, StorageError), match=r"the storage no-?such://") as said:
        open_storage(url)
    told = f"{said.value} {Plan(storage=url)} {capfd.readouterr()}"
    assert "SEC" not in told and "RET" not in told and "\n" not in str(said.value)
