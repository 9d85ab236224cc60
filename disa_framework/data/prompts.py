"""Prompts from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Objects with at least the text `prompt`, one for each line that is not empty.

    A line of a `.jsonl` file is such an object and may say more, as GenEval's `evaluation_metadata.jsonl` (Ghosh et
    al., arXiv 2310.11513) does for its evaluator; a line of any other file is the text itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there are no prompts, or a line, which is named, holds none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give a text file with one a line, or GenEval's .jsonl")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompts: give one a line")
    if path.suffix != ".jsonl":
        return [{"prompt": line} for _, line in lines]
    return [_parse(line, f"{path}, line {number}") for number, line in lines]


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{place} holds no prompt: expected {{"prompt": "a photo of …"}}, got {line[:80]}')
    return dict(content)
