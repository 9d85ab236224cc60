"""Workers that share a study on a PostgreSQL server, which is begun here; `make postgres`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from disa_framework.search.storage import StorageError, open_storage

psycopg = pytest.importorskip("psycopg", reason="the driver is missing: pip install 'disa-framework[postgresql]'")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
    Path(found) for found in [shutil.which("initdb")] if found
]
if not PROGRAMS:
    pytest.skip("the server is missing: apt-get install postgresql", allow_module_level=True)

ROOT = Path(__file__).parents[2]
PASSWORD = "p@ss/w:r?d#%41"
TRIALS = 24
COMMAND = """
from disa_framework.cli.search import search
from disa_framework.search import storage
storage._SERVER = (1, 3)
search()
"""
OPTIONS = [
    "--config", "mixture/search", "--evaluations", "40", "--num_stages", "4", "--rungs", "[1000]",
    "--batch_size", "100", "--seeds", "1", "--finalists", "2", "--calibration", "null", "--trials", str(TRIALS),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Host and port of a server on which `owner` may do everything."""
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root

    def call(program: str, *args: str) -> None:
        command = [str(PROGRAMS[-1].with_name(program)), "-D", f"{folder}/data", *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, user=user)

    with tempfile.TemporaryDirectory() as folder:
        (word := Path(folder, "password")).write_text(PASSWORD)
        if user:
            shutil.chown(folder, user)
            shutil.chown(word, user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        call("initdb", "-U", "owner", "--auth=scram-sha-256", f"--pwfile={word}")
        call("pg_ctl", "start", "-w", "-l", f"{folder}/log", "-o", f"-k {folder} -h 127.0.0.1 -p {port}")
        yield f"127.0.0.1:{port}"
        call("pg_ctl", "stop", "-m", "immediate")


@pytest.fixture(params=["owner:{}@{}/one", "owner@{1}/other?password={0}"])
def url(server: str, request: pytest.FixtureRequest) -> str:
    """Of a database that no other test has, with the password at one of its places."""
    filled = request.param.format(quote(PASSWORD, safe=""), server)
    name = "one" if filled.endswith("/one") else "other"
    with psycopg.connect(f"postgresql://owner@{server}/postgres", password=PASSWORD, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://{filled}"


def trials(url: str) -> list[FrozenTrial]:
    storage = open_storage(url)
    assert isinstance(storage, RDBStorage)
    try:
        return optuna.load_study(study_name="disa", storage=storage).trials
    except KeyError:  # nobody has begun it
        return []
    finally:
        storage.engine.dispose()


def test_a_killed_worker_loses_and_doubles_nothing_and_the_password_is_kept_nowhere(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, *OPTIONS, "--storage", url, "--output", str(tmp_path / "found")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    workers = []
    for name in "ab":
        with (tmp_path / f"{name}.txt").open("w") as said:
            workers.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
    try:
        deadline = time.monotonic() + 200
        while len({trial.user_attrs.get("worker", (0, ""))[1] for trial in trials(url)[4:]} - {""}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        workers[0].kill()
        assert [process.wait(timeout=300) for process in workers] == [-signal.SIGKILL, 0]
    finally:
        for process in workers:
            process.kill()

    drawn = trials(url)
    whole = [trial for trial in drawn if trial.state == TrialState.COMPLETE]
    starts = Counter(trial.user_attrs["start"] for trial in whole if "start" in trial.user_attrs)
    assert len(whole) == TRIALS and all(trial.state.is_finished() for trial in drawn) and set(starts.values()) == {1}
    assert (tmp_path / "found/best.yaml").exists() and (tmp_path / "found/report.html").exists()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    kept = str([trial.user_attrs for trial in drawn])
    assert not [word for word in (PASSWORD, quote(PASSWORD, safe="")) if word.encode() in written or word in kept]


def test_a_wrong_password_and_a_server_that_is_gone_are_a_line_without_it(server: str) -> None:
    for wrong in (f"owner:SECRET@{server}", f"owner@{server}/postgres?password=SECRET", "owner:SECRET@127.0.0.1:1"):
        with pytest.raises(StorageError, match=r"the storage postgresql\+psycopg://127.0.0.1:\d+.* fails: ") as said:
            open_storage(f"postgresql+psycopg://{wrong}")
        assert "SECRET" not in str(said.value) and "\n" not in str(said.value)
