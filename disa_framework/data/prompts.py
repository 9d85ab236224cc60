"""Prompts from a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from disa_framework.hub.reading import instead

_FORMS = "give text with a prompt a line (.txt), or objects with one a line (.jsonl)"
_OTHERS = {
    ".json", ".json5", ".csv", ".tsv", ".tab", ".psv", ".yaml", ".yml", ".toml", ".ini", ".xml", ".html", ".htm",
    ".rtf", ".md", ".ipynb", ".py", ".parquet", ".arrow", ".feather", ".pkl", ".npz", ".npy", ".xls", ".xlsx", ".ods",
    ".doc", ".docx", ".odt", ".pdf", ".gz", ".zip", ".db", ".sqlite",
}  # fmt: skip
_NO_TEXT = re.compile(r"""[{\[]\s*$|\{\s*["']|\[|.*\t""")  # how lines of JSON begin, and tables separate


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Objects with at least the text `prompt`, one for each line that is not empty.

    A line of a `.jsonl` file is such an object and may say more, as GenEval's `evaluation_metadata.jsonl` (Ghosh et
    al., arXiv 2310.11513) does for its evaluator; a line of any other file is the text itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there are no prompts, the file is of another form, or a line, which is named, holds none.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give a text file with one a line, or GenEval's .jsonl")
    if suffix in _OTHERS:
        raise ValueError(f"prompts are not read from {suffix} files, such as {path}: {_FORMS}")
    content = path.read_bytes()
    if kind := instead(content):
        raise ValueError(f"{path} holds no prompts but is {kind}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    if not lines:
        raise ValueError(f"{path} holds no prompts: give one a line")
    if suffix in (".jsonl", ".ndjson"):
        return [_parse(line, f"{path}, line {number}") for number, line in lines.items()]
    for number, line in lines.items():
        if "\0" in line or _NO_TEXT.match(line):
            raise ValueError(f"{path}, line {number} is JSON or of a table, not a prompt, {line[:40]!r}: {_FORMS}")
    return [{"prompt": line} for line in lines.values()]


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{place} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{place} holds no prompt: expected {{"prompt": "a photo of …"}}, got {line[:80]}')
    return dict(content)
