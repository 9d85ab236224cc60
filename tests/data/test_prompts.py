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
        (b'{"prompt": "a", "tag": ' + b"[" * 100_000, "line 1 is nested too deep"),
        (b'{"prompt": "a", "tag": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        (b'{"prompt": "half a \\ud83d character"}', "line 1 is not JSON"),
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


@pytest.mark.parametrize("name", ["p.JSONL", "p.Jsonl", "p.jsonl"])
def test_objects_are_told_by_the_name_in_any_case(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"prompt": "a dog"}')
    assert read_prompts(tmp_path / name) == [{"prompt": "a dog"}]


OBJECTS, TABLE = '{"prompt": "a dog"}\n{"prompt": "a cat"}', "Prompt\tCategory\na dog\tAnimals"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '["a dog", "a cat"]'),
        ("p.JSON", OBJECTS),
        ("p.csv", "id,prompt\n1,a dog"),
        ("PartiPrompts.tsv", TABLE),
        ("p.yaml", "- a dog\n- a cat"),
        ("p.Yml", "prompts: [a dog]"),
        ("p.xlsx", "PK"),
        ("p.txt", OBJECTS),
        ("p.txt", "{'prompt': 'a dog'}"),
        ("p.txt", '[\n  "a dog",\n  "a cat"\n]'),
        ("p.txt", '{\n  "prompts": ["a dog"]\n}'),
        ("prompts", '["a dog"]'),
        ("p.txt", TABLE),
        ("p.list", "a dog\na\0cat"),
    ],
)
def test_what_is_no_list_of_prompts_is_not_drawn(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"\.txt\).*\.jsonl\)$") as error:
        read_prompts(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "prompts"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("<!doctype html>\n<html><title>Sign in</title>", "a web page"),
        ("\n  <HTML lang='en'>\n<body>", "a web page"),
        ('<?xml version="1.0"?><Error>', "a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n", "a pointer of Git LFS"),
    ],
)
def test_what_came_instead_of_prompts_is_told(name: str, content: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"holds no prompts but is {kind}"):
        read_prompts(tmp_path / name)


def test_marks_within_prompts_are_kept(tmp_path: Path) -> None:
    lines = ["<sks> dog", "<headless> rider", "a {red} dog, 30% [sic]", "0,5 apples", "- a dash", '"a quote"']
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert [prompt["prompt"] for prompt in read_prompts(tmp_path / "p.txt")] == lines


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no prompts at .*/none\.txt"):
        read_prompts(tmp_path / "none.txt")
