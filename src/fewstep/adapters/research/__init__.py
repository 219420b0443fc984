"""Networks of research code (EDM, ADM, ScoreSDE), in folders that `fewstep convert` makes. Needs safetensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ...models import read_json
from ..devices import check_device
from .folder import CONFIG, FORMAT, read_config

__all__ = ["BATCH", "FAMILIES", "load", "recognises"]

BATCH = 1  # of large networks, as of pipelines
FAMILIES = {"edm": "edm", "adm": "adm", "score-sde": "score_sde"}  # to a module of this package


def recognises(folder: Path) -> bool:
    """Whether it is the folder of a converted network."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == FORMAT


def load(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
) -> Any:
    """The model in a folder of a converted network. Nothing in it is executed."""
    check_device(device)
    facts = read_config(folder)
    family = facts.pop("family", None)
    if family not in FAMILIES:
        raise ValueError(f"{folder / CONFIG}: family must be one of {', '.join(FAMILIES)}; got {family!r}")
    module = import_module(f".{FAMILIES[family]}", __name__)
    return module.load(folder, facts, device=device, dtype=dtype, batch=batch)
