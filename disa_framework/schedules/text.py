"""Schedules as people write them, and as they print themselves: `Linear(50, 5)`."""

from __future__ import annotations

import ast

from disa_framework import values
from disa_framework.schedules.base import StepSchedule


def schedule_from(text: str) -> StepSchedule:
    """The schedule that a text makes. What it calls is looked up as a schedule first, and its arguments are plain.

    Raises:
        ValueError: it makes none.
    """
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("nothing is called")
        kind = values.find(StepSchedule, ast.unparse(call.func))
        named = {str(part.arg): ast.literal_eval(part.value) for part in call.keywords}
        return kind(*map(ast.literal_eval, call.args), **named)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"no schedule {text!r}: give a class with its arguments, as Linear(50, 5); {error}") from error
