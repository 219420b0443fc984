"""The packaged models, by what their cards say: loading one is `adapters`' and `bench.classifier`'s. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CIFAR10", "DEFAULT_MODEL", "MODELS", "packaged_models", "read_json"]

MODELS = Path(__file__).parent
DEFAULT_MODEL = "cifar32"
CIFAR10 = "uoft-cs/cifar10"  # what they were trained on, on the Hugging Face hub


def packaged_models() -> dict[str, str]:
    """The names of the models that come with the package, and a line on each."""
    cards = sorted(MODELS.glob("*/fewstep.json"))
    return {card.parent.name: read_json(card)["summary"] for card in cards}


def read_json(path: Path) -> dict[str, Any]:
    """A file of a model's folder that holds an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent} is not a model folder: it has no {path.name}") from error
    except (ValueError, RecursionError) as error:  # no text, no JSON, numbers of thousands of digits, endless nesting
        raise ValueError(f"{path} is not valid JSON ({error}): copy the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content
