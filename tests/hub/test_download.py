"""`disa-download` fetches a file once, goes on where it was cut, and says what to do where there is no network."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
import torch

from disa_framework import hub
from disa_framework.cli import start
from disa_framework.cli.download import download
from disa_framework.hub import downloading
from disa_framework.hub.fetching import fetch, fetch_from_hub
from disa_framework.hub.published import PUBLISHED
from tests.hub.test_convert import kl16

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Serves one file from the loopback, whatever is asked for.

    Attributes:
        content: of the file.
        kind: of the content.
        cut_after: how many bytes it sends before it hangs up.
        ranges: whether it knows how to send a part.
        leads_to: where it sends whoever asks.
        asked: the Range of each request.
    """

    daemon_threads = True
    content = CONTENT
    kind = "application/octet-stream"
    cut_after: int | None = None
    ranges = True
    leads_to: str | None = None
    asked: list[str | None]

    def handle_error(self, *args: object) -> None:
        """Whoever asked has hung up."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.address}/file.bin?dl=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        """As Hugging Face answers, which tells its commit."""
        self.send_response(200)
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()

    def do_GET(self) -> None:
        asked, content = self.headers["Range"], self.server.content
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(302 if self.server.leads_to else 206 if start else 200)
        self.send_header("Location", self.server.leads_to or "")
        self.send_header("Content-Type", self.server.kind)
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


# --- one file ---------------------------------------------------------------------------------------------


def test_a_file_is_fetched_and_told_of(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    digest = hashlib.sha256(CONTENT).hexdigest()
    fetch(server.url, tmp_path / "file.bin", mib=5, sha256=digest, progress=lambda *state: told.append(state))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1
    assert told == sorted(told) and told[-1] == (4, 4)  # whole MiB


def test_a_transfer_that_was_cut_goes_on(server: Server, tmp_path: Path) -> None:
    path, half = tmp_path / "file.bin", len(CONTENT) // 2
    server.cut_after = half
    with pytest.raises(OSError, match=r"cut after 2,560,000 of 5,120,000 bytes"):
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


def test_another_file_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4\.9 MiB instead of 254: it is not the published file"):
        fetch(server.url, tmp_path / "kl16.ckpt", mib=254)
    with pytest.raises(ValueError, match=r"another SHA-256 than 00ff: it is not the published file"):
        fetch(server.url, tmp_path / "kl16.ckpt", sha256="00ff")
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(OSError, match="a web page"):
        fetch(server.url, tmp_path / "kl16.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/json"])
@pytest.mark.parametrize(
    "content", [b"\n<!DOCTYPE html>\n<title>Sign in", b"version https://git-lfs.github.com/spec/v1"]
)
def test_a_page_or_a_pointer_under_another_name_is_not_kept(
    content: bytes, kind: str, server: Server, tmp_path: Path
) -> None:
    server.content, server.kind = content, kind
    with pytest.raises(OSError, match=r"what came is a (web page|pointer)"):
        fetch(server.url, tmp_path / "evaluation_metadata.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://a/b", "http://example.com/a", "data:,a", "a.pth", ""])
def test_no_other_address_is_used(url: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begins with https://"):
        fetch(url, tmp_path / "file.bin")
    if url.startswith("f"):  # where an address leads to, neither
        server.leads_to = url
        with pytest.raises((ValueError, OSError)):
            fetch(server.url, tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


# --- Hugging Face -----------------------------------------------------------------------------------------


@pytest.fixture
def hugging_face(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    local = partial(huggingface_hub.hf_hub_download, endpoint=server.address)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", local)
    return server


def test_what_lies_on_hugging_face_is_fetched_by_its_library(hugging_face: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch_from_hub("owner/name", "file.bin", tmp_path / "f.bin", progress=lambda *state: told.append(state))
    assert (tmp_path / "f.bin").read_bytes() == CONTENT and len(list(tmp_path.iterdir())) == 1
    assert told[-1] == (4, 4)
    for _ in range(2):
        files = hub.download("qwen2.5-0.5b", tmp_path)
    assert {file.name for file in files} == set(PUBLISHED["qwen2.5-0.5b"].files) and len(hugging_face.asked) == 6
    assert all(file.parent == tmp_path / "qwen2.5-0.5b" and file.read_bytes() == CONTENT for file in files)


def test_without_its_library_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install"):
        hub.download("xar-base", tmp_path)


# --- by name ----------------------------------------------------------------------------------------------


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
    assert f"draw with it: disa-predict … --vae {folder / 'kl16.safetensors'}" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [False, True])
def test_a_model_of_several_files_is_converted_and_their_folder_is_removed(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("pytorch_model.bin", "scheduler/scheduler_config.json")
    published = replace(PUBLISHED["kl16"], mib=None, url="", repo="user/kl16", files=files)
    monkeypatch.setitem(PUBLISHED, "kl16", published)

    def fetch(repo: str, file: str, path: Path, progress: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}") if file.endswith(".json") else torch.save(kl16(), path)

    monkeypatch.setattr(downloading, "fetch_from_hub", fetch)
    (tmp_path / "kl16").mkdir()
    for _ in range(2):
        assert hub.download("kl16", tmp_path, keep=keep) == (tmp_path / "kl16.safetensors",)
    left = {str(path.relative_to(tmp_path / "kl16")) for path in (tmp_path / "kl16").rglob("*.*")}
    assert left == (set(files) if keep else set()) and (tmp_path / "kl16").exists() == keep


def test_weights_of_another_model_are_refused(server: Server, tmp_path: Path) -> None:
    torch.save({"model": {k: t for k, t in kl16().items() if "decoder" not in k}}, tmp_path / "xAR-B.pth")
    server.content = (tmp_path / "xAR-B.pth").read_bytes()
    with pytest.raises(ValueError, match=r"like kl16, but it lacks decoder.*to fetch it again, remove .*xar-base\.pth"):
        download(["xar-base", "--to", str(tmp_path / "to"), "--url", server.url])


def test_a_file_without_weights_stays_as_it_is(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        download(["geneval", "--to", str(tmp_path), "--url", server.url])
    assert (tmp_path / "evaluation_metadata.jsonl").read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize(("name", "place"), [("mar-large", "mar-large.pth"), ("xar-huge", "xar-huge.pth")])
def test_without_a_network_the_address_and_the_place_are_told(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = "http://127.0.0.1:9/nothing"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = ["--url", url] if name == "mar-large" else []
    monkeypatch.setattr(sys, "argv", ["disa-download", name, "--to", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stop:
        start.download()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1
    address = re.escape(url if options else PUBLISHED[name].addresses[0])
    told = rf"disa-download: error: .*or fetch {address} by other means, put it at {tmp_path / place}, and give"
    assert re.match(told, line)


def test_names_and_addresses_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing is known as 'mar': mar-base, mar-large"):
        download(["mar", "--to", str(tmp_path)])
    with pytest.raises(ValueError, match="5 files, for which one address will not do"):
        download(["qwen2.5-0.5b", "--to", str(tmp_path), "--url", "http://127.0.0.1:9"])
    for name, entry in PUBLISHED.items():
        assert entry.addresses and entry.description, name
        assert all(address.startswith("https://") for address in entry.addresses)
