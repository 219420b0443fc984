"""Files that appear whole or not at all, and are on the disk when they count."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

__all__ = [
    "appearing",
    "append",
    "check_file",
    "check_writable",
    "locked",
    "read_npz",
    "remove_leftovers",
    "sha256_of",
    "write_all",
    "write_atomically",
]  # fmt: skip

LOCK = ".fewstep.lock"  # stays when the lock is gone: unlinking it would let two processes lock different files
# What numpy and zipfile raise for damage; TypeError is of a .npy under that name.
DAMAGED = (ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)
TAG_BYTES = 8  # of the random part of a temporary file's name


def check_writable(folder: Path, argument: str = "--out") -> None:
    """Make `folder` if need be, and fail now rather than after the work if it takes no files.

    `argument` is what its user names it by.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): choose another {argument}") from error


def check_file(path: Path, argument: str = "--out") -> None:
    """The same for one file."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}, it is a folder: choose another {argument}")
    check_writable(path.parent, argument)


@contextmanager
def locked(folder: Path, argument: str = "--out") -> Iterator[None]:
    """Hold `folder` for this process alone, or BlockingIOError; the lock ends with the process, however it ends."""
    from filelock import FileLock, Timeout  # torch depends on it

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(
            f"{folder} is in use by another run: wait until that has ended, or choose another {argument}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name; ValueError if it is none, or not whole."""
    with path.open("rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                return dict(file)
        except DAMAGED as error:
            raise ValueError(f"{path} is not a whole npz file of arrays: copy it anew, or remove it") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that it is never seen half written.

    It is on the disk when this returns. Any number of processes may write the same file: what one of them wrote stays.
    """
    write_all(path.parent, {path.name: content})


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """The same for several files of a folder, in order."""
    for name, content in contents.items():
        with appearing(folder / name) as temporary:
            temporary.write_bytes(content)
    flush_folder(folder)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """The name under which to write a file, which is moved to `path` once its content is on the disk."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(TAG_BYTES)}.part"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            flush(file)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, on the disk when this returns; if that fails, it is as long as it was."""
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                file.write(content)
                flush(file)
            except BaseException:
                file.truncate(size)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what processes that were killed left of writing `names`, where no other process writes these."""
    for path in folder.glob(".*.part"):
        name, _, tag = path.name[1:].removesuffix(".part").rpartition(".")
        if name in names and len(tag) == 2 * TAG_BYTES:
            path.unlink()


def unwritable(path: Path, error: OSError) -> OSError:
    return OSError(f"cannot write {path} ({error.strerror or error}): make room there, or write elsewhere")


def flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """That a file is there, not only its content."""
    if os.name == "nt":  # which cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """In hexadecimal digits; the file is read by parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
