"""Prompts: words of a vocabulary, and tokenizers and networks of `transformers`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from torch import Tensor

from disa_framework.sampling.condition import Condition


@dataclass(frozen=True)
class Words:
    """A tokenizer of whole words.

    Attributes:
        words: of the prompts.

    Raises:
        ValueError: a word is none.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if wrong := [word for word in self.words if split(word) != [word]]:
            raise ValueError(f"each of words must be one word, got {wrong[0]!r}")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Of every word."""
        return self.numbered()

    def numbered(self, *before: str) -> dict[str, int]:
        """Numbers of the words, and of some before them."""
        return {word: number for number, word in enumerate(dict.fromkeys((*before, *self.words)))}

    def read(self, text: str) -> list[int]:
        """Ids of the words of a text.

        Raises:
            ValueError: a word is not known.
        """
        words = split(text)
        if unknown := [word for word in words if word not in self.ids]:
            raise ValueError(f"the vocabulary does not know {unknown[0]!r}: its words are {', '.join(self.ids)}")
        return [self.ids[word] for word in words]


def split(text: str) -> list[str]:
    """Words, signs, and marks such as <|im_end|>, one by one."""
    return re.findall(r"<\|\w+\|>|\w+|[^\w\s]", text)


def check_prompts(condition: Condition, name: str) -> None:
    """Raises a ValueError unless a condition is a list of texts, for a model of this name."""
    if isinstance(condition, Tensor):
        raise ValueError(f"{name} draws prompts: give texts, not labels")
    if isinstance(condition, str) or not all(isinstance(prompt, str) for prompt in condition):
        raise ValueError(f"prompts must be a list of texts, got {condition!r}")


def pretrained(kind: str, source: str, example: str, **options: Any) -> Any:
    """What `transformers` has in a folder or under a hub name.

    Args:
        kind: its class.
        source: folder or hub name.
        example: of one, for the message.
        options: of `from_pretrained`.

    Raises:
        OSError: there is none.
        ValueError: it has code of its own.
    """
    try:
        return getattr(library(), kind).from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source} has code of its own, which is not run: give one that transformers has"
            ) from error
        raise OSError(
            f"transformers' {kind} finds none at {source!r}: give a folder or a hub name, such as {example}"
        ) from error


def library() -> ModuleType:
    """`transformers`; a ValueError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError("prompts need transformers: pip install 'disa-framework[harmon]'") from error
    return transformers
