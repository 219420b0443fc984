"""Files of torch.save as plain tensors: nothing in them is executed, and they are no larger in memory than on disk."""

from __future__ import annotations

import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

__all__ = ["plain_tensors", "read_torch_file"]


def read_torch_file(path: Path) -> Any:
    """What is in a `.pt` or `.pth` of torch 1.6 or later; its tensors stay on the disk until they are read.

    ValueError for a file that is no such archive, holds code or other objects, names files outside of itself, or
    would unpack to more than its size.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} is not a whole file of torch.save: copy it again, or, if torch before 1.6 wrote it, save it anew: "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        ) from error
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"{path} names a file outside of itself, {member.filename!r}: it is not of torch.save")
    if any(each.compress_type for each in members) or sum(each.file_size for each in members) > size:
        raise ValueError(f"{path} would unpack to more than its {size:,} bytes: it is not of torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a file that is not as it should be leads to
        # torch's own advice, to load it with weights_only=False, would execute what is in it.
        reason = textwrap.shorten(str(error).split("WeightsUnpickler error:")[-1], 200, placeholder=" ...")
        raise ValueError(f"{path} holds more than tensors, or is damaged ({reason}): it is refused") from error


def plain_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """A state dict, or ValueError; no tensor repeats its values, so that together they are no larger than the file."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no weights by name: give the file of a network")
    for name, each in content.items():
        if not isinstance(name, str) or not isinstance(each, Tensor):
            raise ValueError(f"{path} holds {name!r}, which is no tensor: give the file of a network")
        if each.layout != torch.strided or each.device.type != "cpu":  # sparse, or without values
            raise ValueError(f"{path}: {name} is no plain tensor: it is refused")
    if sum(each.numel() * each.element_size() for each in content.values()) > path.stat().st_size:
        raise ValueError(f"{path}: its tensors are larger than the file: it is refused")
    return dict(content)
