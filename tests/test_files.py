"""A file is whole or absent, whatever happens while it is written."""

import os
from pathlib import Path

import pytest

from disa_framework.files import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"new", bytes(range(256)) * 1000], ids=len)
def test_a_file_holds_what_was_written_and_nothing_lies_beside_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, content)
    assert path.read_bytes() == content
    assert names(tmp_path) == ["file.bin"]


def test_an_older_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old and longer")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old and longer"  # whoever reads meanwhile reads one file
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_write_that_fails_leaves_the_older_file_and_no_half_one(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError("no space left")

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:1])
        full()

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file.bin", b"new")
