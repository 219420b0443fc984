"""Labels of classes, as every model that has classes takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["class_labels", "integer_labels"]


def class_labels(labels: Sequence[int] | Tensor | int, classes: Sequence[str]) -> Tensor:
    """`labels` as a tensor, () or (B,), of places in `classes`; ValueError if they are not, or if there are none."""
    if not classes:
        raise ValueError("this model has no classes: call it as it is")
    wanted = integer_labels(labels)
    if wanted is None or wanted.ndim > 1 or bool(((wanted < 0) | (wanted >= len(classes))).any()):
        raise ValueError(f"labels must be integers in [0, {len(classes)}); got {labels!r}: give places in `classes`")
    return wanted


def integer_labels(labels: object) -> Tensor | None:
    """`labels` as a tensor, if that is what they are."""
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if found.is_floating_point() else found
