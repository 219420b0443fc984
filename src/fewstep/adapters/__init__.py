"""Other people's models as denoisers. Imported only when asked for; each needs the extra that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..models import DEFAULT_MODEL, packaged_models
from . import research, unet2d
from .locality import Local, local
from .unet2d import EDMModel

__all__ = ["EDMModel", "Local", "load_model", "local", "packaged_models"]


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
) -> Any:
    """Load a packaged model by name, or a folder: of a UNet2DModel, or of a network that `fewstep convert` made."""
    if Path(name).is_dir() and str(name) not in packaged_models() and research.recognises(Path(name)):
        return research.load(Path(name), device=device, dtype=dtype, batch=batch)
    return unet2d.load_model(name, device=device, dtype=dtype, batch=batch)
