"""Files of prompts, and what identifies prompts in records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["digest", "read_prompts"]


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty; ValueError if there are none, or it is no text."""
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error})") from error
    if not lines:
        raise ValueError(f"{path} holds no prompts")
    return lines


def digest(prompts: Sequence[str], negative: str | None = None) -> dict[str, Any] | None:
    """What identifies the prompts of a run."""
    if not prompts:
        return None
    words = json.dumps([list(prompts), negative])
    return {"count": len(prompts), "first": prompts[0], "sha256": hashlib.sha256(words.encode()).hexdigest()}
