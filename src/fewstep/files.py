"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

__all__ = ["check_file", "check_writable", "read_npz", "write_atomically"]


def check_writable(folder: Path) -> None:
    """Make `folder` if need be, and fail now rather than after the work if it takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error


def check_file(path: Path) -> None:
    """The same for one file."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}, it is a folder: choose another --out")
    check_writable(path.parent)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name; ValueError if it is none, or not whole."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # TypeError: of a .npy under that name
        raise ValueError(f"{path} is not a whole npz file of arrays: copy it anew, or remove it") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that it is never seen half written."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
