"""Where a study is kept: what opens it, and how it tells that a worker is lost."""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from sqlalchemy import event

RETRIES = 3
"""Times that a trial is drawn again whose workers are lost."""

_FILE, _SERVER = (5, 20), (60, 300)  # seconds between heartbeats, and without any until a worker passes for lost
_OPENINGS = 8  # of a file that several workers make at once


def open_storage(storage: str, heartbeat: tuple[int, int] | None = None) -> BaseStorage:
    """The storage behind a database URL (`sqlite:///study.db`), or in a journal file (`study.log`).

    A journal, which suits disks that are shared over a network, does not notice that a worker is lost: what that was at
    is not drawn again.

    Args:
        storage: URL or file.
        heartbeat: of a database: seconds between a worker's signs of life, and without any until it passes for lost; 5
            and 20 for a file, 60 and 300 for a server.

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        if "://" in storage:
            return _open_database(storage, heartbeat)
        path = Path(storage.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except Exception as error:  # each database has its own
        raise ValueError(
            f"cannot open the storage {storage}: {str(error).splitlines()[0]}; give a file, such as study.log, "
            "or a URL, such as sqlite:///study.db"
        ) from error


def _open_database(url: str, heartbeat: tuple[int, int] | None) -> RDBStorage:
    is_file = url.startswith("sqlite")
    interval, grace = heartbeat or (_FILE if is_file else _SERVER)
    for attempt in range(1, _OPENINGS + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                storage = RDBStorage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": 60}} if is_file else None,
                    heartbeat_interval=interval,
                    grace_period=grace,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                )
                if is_file:
                    _lock_while_reading(storage)
                return storage
        except Exception:  # another worker may be making the same tables
            if not is_file or attempt == _OPENINGS:
                raise
            time.sleep(random.uniform(0, 0.1 * attempt))
    raise AssertionError


def _lock_while_reading(storage: RDBStorage) -> None:
    """Has a file locked from the start of a transaction, not from its first change: between the two, another worker
    would take the same trial. As SQLAlchemy advises; servers lock rows."""
    storage.engine.dispose()
    event.listen(storage.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def grace(storage: BaseStorage | None) -> float:
    """Seconds after which a worker passes for lost; 0 where none ever does."""
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        return 0.0
    return storage.heartbeat_interval + (storage.grace_period or 2 * storage.heartbeat_interval)
