"""Where a study is kept: what opens it, how it tells that a worker is lost, and what it says when it fails."""

from __future__ import annotations

import random
import re
import sqlite3
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import URL, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError

RETRIES = 3
"""Times that a trial is drawn again whose workers are lost."""

_FILE, _SERVER = (5, 20), (15, 60)  # seconds between heartbeats, and without any until a worker passes for lost
_WAITING = 60.0  # seconds for a file that other workers write
_MAKING = 2.0  # seconds in which another worker makes the tables of a server's new database
_SECTOR = 512  # bytes, of which the pages of a file have whole numbers
_URL = re.compile(r"[\w+]+://([^@/?#]*@)?[^@]*")  # otherwise, part of a password would pass for a host, and be told


class StorageError(OSError):
    """A database cannot be opened, read or written."""


def open_storage(storage: str, heartbeat: tuple[int, int] | None = None) -> BaseStorage:
    """The storage in a SQLite file (`study.db`), or behind a database URL (`postgresql://user:password@host/studies`).

    When it fails, also later, a `StorageError` names it: by its file, or by its URL without user, password and options.

    Args:
        storage: file or URL.
        heartbeat: seconds between a worker's signs of life, and without any until it passes for lost; 5 and 20 for a
            file, 15 and 60 for a server.

    Raises:
        ValueError: if this is no URL.
        StorageError: if it cannot be opened, or a file is damaged.
    """
    url = _url(storage)
    try:
        if _is_file(url):
            _make_tables(url.database or "")
        opened = _opened(url, heartbeat)
        if _is_file(url):
            _lock_while_reading(opened)
            _check_file(opened, Path(url.database or ""))
    except Exception as error:  # each database has its own
        raise _told(url, error) from error
    event.listen(opened.engine, "handle_error", _tell)
    return opened


def grace(storage: BaseStorage | None) -> float:
    """Seconds after which a worker passes for lost; 0 where none ever does."""
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        return 0.0
    return storage.heartbeat_interval + (storage.grace_period or 2 * storage.heartbeat_interval)


class _Database(RDBStorage):
    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(StorageError):  # its thread has nobody to tell; whoever reads or writes next is told
            super().record_heartbeat(trial_id)


def _url(storage: str) -> URL:
    if "://" not in storage:
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite", database=str(path))
    if storage.startswith("sqlite") or _URL.fullmatch(storage):
        with suppress(ArgumentError, ValueError):  # which may quote a password
            return make_url(storage)
    raise ValueError(
        f"the storage {storage.partition('://')[0]}://… is no URL: write dialect://user:password@host:port/database, "
        "and in user and password %40 for @, %3A for :, %2F for /, %3F for ?, %23 for #, %25 for %"
    )


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _make_tables(path: str) -> None:
    """Makes those of a new file in one transaction: a full disk leaves none of them, and other workers wait."""
    with closing(sqlite3.connect(path, timeout=_WAITING, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            model: Any = RDBStorage("sqlite://").engine.raw_connection().driver_connection
            for statement in [*model.iterdump()][1:-1]:  # between its BEGIN and COMMIT
                connection.execute(statement)
        connection.execute("COMMIT")


def _opened(url: URL, heartbeat: tuple[int, int] | None) -> RDBStorage:
    interval, grace = heartbeat or (_FILE if _is_file(url) else _SERVER)
    until = time.monotonic() + _MAKING
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return _Database(
                    url.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": {"timeout": _WAITING}} if _is_file(url) else None,
                    heartbeat_interval=interval,
                    grace_period=grace,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                )
        except (DatabaseError, StorageInternalError, AssertionError):
            if _is_file(url) or time.monotonic() > until:
                raise
            time.sleep(random.uniform(0, 0.2))


def _lock_while_reading(storage: RDBStorage) -> None:
    """Has a file locked from the start of a transaction, not from its first change: between the two, another worker
    would take the same trial. As SQLAlchemy advises; servers lock rows."""
    storage.engine.dispose()
    event.listen(storage.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _check_file(storage: RDBStorage, path: Path) -> None:
    """Raises an error of any kind if not everything can be read."""
    with storage.engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
    if path.stat().st_size % _SECTOR or found != "ok":
        raise EOFError("parts of it are missing")
    optuna.get_all_study_summaries(storage)


def _tell(context: ExceptionContext) -> None:
    """Raises what SQLAlchemy is about to, as a line; Optuna itself makes use of what must be unique."""
    if context.engine is not None and not isinstance(context.sqlalchemy_exception, IntegrityError):
        raise _told(context.engine.url, context.original_exception) from context.original_exception


def _told(url: URL, error: BaseException) -> StorageError:
    public = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
    name = (_is_file(url) and url.database) or public
    while error.__cause__:
        error = error.__cause__
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return StorageError(
        f"the storage {name} fails: {reason}. What it holds stays there: mend this and start again, "
        "or give another file, such as study.db, or URL, such as postgresql://host/studies"
    )
