"""Prompts are read as they are written, or the line that is not one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disa_framework.data import read_prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa photo of a cat\r\n\r\n  ein Käfer, 二 \n   \n{not JSON".encode())
    assert read_prompts(path) == [{"prompt": text} for text in ("a photo of a cat", "ein Käfer, 二", "{not JSON")]


def test_metadata_is_kept(tmp_path: Path) -> None:
    lines = [
        {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "two benches"},
        {"prompt": "a line separator\u2028within"},
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    assert read_prompts(path) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n\n{"prompt": ', "line 3 is not JSON"),
        (b'{"tag": "colors"}', 'line 1 holds no prompt: expected {"prompt": "a photo of …"}, got {"tag": "colors"}'),
        (b'{"prompt": 3}', "line 1 holds no prompt"),
        (b'{"prompt": " "}', "line 1 holds no prompt"),
        (b'["a photo of a cat"]', "line 1 holds no prompt"),
        (b"\n \n", "holds no prompts: give one a line"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_what_is_no_prompt_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_prompts(path)
    assert f"{path}" in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no prompts at .*/none\.txt"):
        read_prompts(tmp_path / "none.txt")
