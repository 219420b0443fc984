"""A folder of one piece of work, which survives interruption, power loss and company.

`run.json` says what the work is of, its settings, and how it stands. `SHA256SUMS`, which `sha256sum -c` reads, has the
checksum of each file. A checksum is on the disk before its file is: so a file of ours always has one, what has none is
somebody else's and is not touched, and what differs from it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, Self

from .files import LOCK, append, check_writable, locked, remove_leftovers, sha256_of, write_all, write_atomically

__all__ = ["Store"]

RECORD, SUMS = "run.json", "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\n]+)\n")


class Store:
    """The folder, held for this process alone until `close` or the end of a `with`.

    `settings` is everything that the content depends on, in the terms of JSON. A folder with the same settings is gone
    on with; one with others is refused, or replaced, as by `begin_anew`, if `overwrite`. The numbers of the settings
    that `extends` names may grow. `names` are of files that will be written: one that is not ours is refused at once.
    For those who are refused, `argument` is what they named the folder by, `instead` how they may overwrite it, and
    `again` how they may have it made again if its records are damaged.

    `previous` is the record found, of the same work; `damaged` has the names of files that are not as they were
    written: `holds` denies them, and `write` replaces them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        names: Collection[str] = (),
        extends: Collection[str] = (),
        overwrite: bool = False,
        argument: str = "--out",
        instead: str | None = None,
        again: str | None = None,
    ):
        self.folder, self.settings = folder, json.loads(json.dumps(dict(settings)))
        self._remedy = f"choose another {argument}"
        self._again = again or self._remedy
        self._whole: set[str] = set()
        self._old: set[str] = set()  # files of the run that is to be replaced
        self._begun = False
        check_writable(folder, argument)
        with ExitStack() as held:
            held.enter_context(locked(folder, argument))
            self.previous = self._read_record()
            self._sums = self._read_sums()
            ours = set(self._sums)
            if self.previous is not None:
                self._accept(self.previous["settings"], extends, overwrite, instead)
            for name in sorted(set(os.listdir(folder)) & set(names) - ours):
                self._refuse(name)
            remove_leftovers(folder, {RECORD, SUMS, *ours})
            self.damaged = [name for name in self._sums if (folder / name).exists() and not self.holds(name)]
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write here."""
        self._held.close()

    @property
    def empty(self) -> bool:
        """Whether nothing was written yet, not even a record."""
        return not (self.folder / RECORD).exists()

    def begin_anew(self) -> None:
        """Take nothing of what was found. It stays until there is a first file to write, and goes then."""
        self._old |= {name for name in self._sums if (self.folder / name).exists()}
        self.previous, self.damaged, self._sums, self._whole = None, [], {}, set()
        if not self._old:
            self._empty()

    def holds(self, name: str) -> bool:
        """Whether the file is there, as it was written."""
        if name not in self._whole and name in self._sums:
            path = self.folder / name
            if path.is_file() and sha256_of(path) in self._sums[name]:
                self._whole.add(name)
        return name in self._whole

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files by name, in order, or replace what they held; they are on the disk when this returns."""
        for name in contents:
            if name not in {*self._sums, *self._old} and (self.folder / name).exists():
                self._refuse(name)
        if self._old:
            self._empty()
        if not self._begun:
            self.record("running")
        # A file that is replaced has two checksums, until it is known which one came to the disk.
        lines = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        append(self.folder / SUMS, _lines(lines.items()))
        for name, checksum in lines.items():
            self._sums.setdefault(name, []).append(checksum)
            self._whole.discard(name)
        write_all(self.folder, contents)

    def record(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write run.json, and return its content. While another run's files are there, it keeps its own."""
        record = {"status": status, **facts, "settings": self.settings}
        if self._old:
            return record
        write_atomically(self.folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        self._begun = True
        self._tidy()
        return record

    def remove(self) -> None:
        """Remove all that is ours, and the folder if nothing else is in it."""
        self._empty()
        (self.folder / RECORD).unlink(missing_ok=True)
        (self.folder / LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        self.close()

    def _refuse(self, name: str, remedy: str | None = None) -> NoReturn:
        raise FileExistsError(f"{self.folder / name} is not of this run: {remedy or self._remedy}")

    def _read_record(self) -> dict[str, Any] | None:
        path = self.folder / RECORD
        if not path.exists():
            if (self.folder / SUMS).exists():
                self._refuse(SUMS, self._again)
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {**record, "settings": dict(record["settings"])}
        except (ValueError, KeyError, TypeError) as error:
            raise FileExistsError(f"{path} is damaged, or not of a run of fewstep: {self._again}") from error

    def _read_sums(self) -> dict[str, list[str]]:
        path, sums = self.folder / SUMS, dict[str, list[str]]()
        if not path.exists():
            return sums
        text = path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        for line in whole.splitlines(keepends=True):
            found = LINE.fullmatch(line)
            if found is None or found[2] in (RECORD, SUMS):
                raise FileExistsError(f"{path} is damaged, or not of a run of fewstep: {self._again}")
            sums.setdefault(found[2], []).append(found[1])
        if whole != text:  # a process was killed as it wrote the last line: that file was not begun
            write_atomically(path, whole.encode())
        return sums

    def _accept(self, old: Mapping[str, Any], extends: Collection[str], overwrite: bool, instead: str | None) -> None:
        new = self.settings
        grown = {key for key in extends if isinstance(old.get(key), int) and old[key] < new[key]}
        changed = [key for key in {**new, **old} if old.get(key) != new.get(key) and key not in grown]
        if not changed:
            return
        self.begin_anew()
        if self._old and not overwrite:
            told = "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
            remedy = self._remedy if instead is None else f"{self._remedy}, or {instead}"
            raise FileExistsError(f"{self.folder} holds another run ({told}): {remedy}")

    def _empty(self) -> None:
        for name in (*self._sums, *self._old):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / SUMS).unlink(missing_ok=True)
        self._sums, self._old, self._whole = {}, set(), set()

    def _tidy(self) -> None:
        """One line a file that is there; so that all of them are right, unless something is damaged."""
        sums = {}
        for name, found in self._sums.items():
            path = self.folder / name
            if path.exists():
                sums[name] = [sha256_of(path)] if len(found) > 1 and self.holds(name) else found
        if sums != self._sums or not (self.folder / SUMS).exists():
            write_atomically(self.folder / SUMS, _lines((name, each) for name, all_ in sums.items() for each in all_))
            self._sums = sums


def _lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{checksum}  {name}\n" for name, checksum in pairs).encode()
