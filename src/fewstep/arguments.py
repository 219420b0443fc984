"""Numbers that a caller may give: Python's and NumPy's alike, and no truth values.

What is none comes out as what no bound lets through, so that who asked refuses it in words of its own.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

__all__ = ["count", "integer", "number"]


def number(value: Any) -> float:
    """`value` as a float; NaN if it is no real number, as a truth value, a word or a tensor, or beyond a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def count(value: Any) -> int:
    """`value` as an int; 0 if it is no integer, for what must be 1 or more."""
    return integer(value) or 0


def integer(value: Any) -> int | None:
    """`value` as an int; None if it is no integer: half a one, a truth value, a word."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
