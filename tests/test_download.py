"""`disa-download` fetches a file once, goes on where it was cut, and says what to do where there is no network."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from disa_framework.cli.download import command, download, fetch
from disa_framework.models.published import PUBLISHED
from tests.test_convert import kl16

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Serves one file from the loopback.

    Attributes:
        content: of the file.
        cut_after: how many bytes it sends before it hangs up.
        ranges: whether it knows how to send a part.
        asked: the Range of each request.
    """

    daemon_threads = True
    content = CONTENT
    cut_after: int | None = None
    ranges = True
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin?dl=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked, content = self.headers["Range"], self.server.content
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : self.server.cut_after])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch(server.url, tmp_path / "file.bin", mib=5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None] and len(list(tmp_path.iterdir())) == 1


def test_a_transfer_that_was_cut_goes_on(server: Server, tmp_path: Path) -> None:
    path, half = tmp_path / "file.bin", len(CONTENT) // 2
    server.cut_after = half
    with pytest.raises(OSError, match=r"cut after 2,560,000 of 5,120,000 bytes: give the command again to go on"):
        fetch(server.url, path)
    assert not path.exists()
    server.cut_after = None
    fetch(server.url, path)
    assert path.read_bytes() == CONTENT and server.asked == [None, f"bytes={half}-"]


@pytest.mark.parametrize("case", ["no ranges", "too much"])
def test_a_transfer_that_cannot_go_on_starts_again(case: str, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(b"x" * (100 if case == "no ranges" else len(CONTENT)))
    server.ranges = case != "no ranges"
    fetch(server.url, path)
    assert path.read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4\.9 MiB instead of 254: it is not the published file"):
        fetch(server.url, tmp_path / "kl16.ckpt", mib=254)
    assert not list(tmp_path.iterdir())


def test_weights_are_converted_and_the_original_is_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PUBLISHED, "kl16", replace(PUBLISHED["kl16"], mib=None))  # here it takes no room
    torch.save({"model": kl16()}, tmp_path / "published.ckpt")
    server.content = (tmp_path / "published.ckpt").read_bytes()
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        download(["kl16", "--to", str(folder), "--url", server.url])
    assert [path.name for path in folder.iterdir()] == ["kl16.safetensors"] and server.asked == [None]
    out = capsys.readouterr().out
    assert f"draw with it: disa-predict … --vae {folder / 'kl16.safetensors'}" in out and "is there already" in out


def test_weights_of_another_model_are_refused(server: Server, tmp_path: Path) -> None:
    torch.save({"model": {k: t for k, t in kl16().items() if "decoder" not in k}}, tmp_path / "xAR-B.pth")
    server.content = (tmp_path / "xAR-B.pth").read_bytes()
    with pytest.raises(ValueError, match=r"like kl16, but it lacks decoder.*to fetch it again, remove .*xar-base\.pth"):
        download(["xar-base", "--to", str(tmp_path / "to"), "--url", server.url])


def test_a_file_without_weights_stays_as_it_is(server: Server, tmp_path: Path) -> None:
    download(["geneval", "--to", str(tmp_path), "--url", server.url])
    assert (tmp_path / "evaluation_metadata.jsonl").read_bytes() == CONTENT


def test_without_a_network_the_address_and_the_place_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = "http://127.0.0.1:9/nothing"
    monkeypatch.setattr(sys, "argv", ["disa-download", "mar-large", "--to", str(tmp_path), "--url", url])
    with pytest.raises(SystemExit) as stop:
        command()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    place = re.escape(str(tmp_path / "mar-large.pth"))
    assert re.match(rf"disa-download: error: .*or fetch {url} by other means, put it at {place}, and give", line)


def test_names_and_addresses_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is known as 'mar': mar-base, mar-large"):
        download(["mar", "--to", str(tmp_path)])
    with pytest.raises(ValueError, match="5 files, for which one --url will not do"):
        download(["qwen2.5-0.5b", "--to", str(tmp_path), "--url", "http://127.0.0.1:9"])
    for name, entry in PUBLISHED.items():
        assert all(url.startswith("https://") for url in entry.urls) and entry.description, name
