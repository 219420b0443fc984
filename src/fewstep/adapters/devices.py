"""Where a model can run."""

from __future__ import annotations

import torch

__all__ = ["check_device"]


def check_device(device: str | torch.device) -> None:
    """ValueError unless tensors can be made there."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # the former from a torch built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}): use 'cpu'") from error
