"""A folder of samples that survives interruption: files appear whole or not at all; a run goes on where it stopped."""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .files import check_writable, read_npz, write_atomically
from .pictures import png, read, sheet

__all__ = ["Run", "versions"]

SHEET = 256  # images on grid.png


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    packages = ("torch", "numpy", "diffusers")
    return {"fewstep": __version__, **{name: importlib.metadata.version(name) for name in packages}}


class Run:
    """`run.json`, `grid.png` (the first 256) and one PNG an image, or one `samples.npz`, in a folder.

    `settings` is everything that the pixels depend on, and `n`. A folder whose run.json has the same settings is
    continued from image `made`; one with others is refused, or emptied if `overwrite`. Files that are not of a run
    are never touched. An npz run keeps its images in memory until `finish`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], as_npz: bool = False, overwrite: bool = False):
        self.folder, self.settings, self.as_npz = folder, dict(settings), as_npz
        check_writable(folder)
        self.previous = self._read_record()
        if self.previous is not None and self.previous["settings"] != self.settings:
            if not overwrite and self._images():  # a run that failed before its first image holds nothing
                changed = _differences(self.previous["settings"], self.settings)
                raise FileExistsError(f"{folder} holds another run ({changed}): choose another --out, or --overwrite")
            for stale in self._images():
                stale.unlink()
            self.previous = None
        self._kept = self._read_npz() if as_npz else []
        self.made = self._count()

    def complete(self) -> dict[str, Any] | None:
        """The record of the run in the folder, if it is done."""
        whole = self.previous is not None and self.previous.get("status") == "done" and self.made == self.settings["n"]
        return self.previous if whole else None

    def _read_record(self) -> dict[str, Any] | None:
        path = self.folder / "run.json"
        if not path.exists():
            for foreign in (*self._images(), self.folder / "grid.png"):
                if foreign.exists():
                    raise FileExistsError(f"{foreign} is not of a run, there is no run.json: choose another --out")
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {**record, "settings": dict(record["settings"])}
        except (ValueError, KeyError, TypeError) as error:
            raise FileExistsError(f"{path} is not of a run of fewstep: choose another --out") from error

    def _images(self) -> list[Path]:
        return [*self.folder.glob("[0-9]" * 6 + ".png"), *self.folder.glob("samples.npz")]

    def _image(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def _read_npz(self) -> list[np.ndarray]:
        path = self.folder / "samples.npz"
        return list(read_npz(path)["images"]) if path.exists() else []

    def _count(self) -> int:
        if self.as_npz:
            return len(self._kept)
        return next((i for i in range(self.settings["n"]) if not self._image(i).exists()), self.settings["n"])

    def add(self, array: np.ndarray) -> None:
        """Keep the next images, (B, H, W, 3) uint8; PNG files are written at once."""
        for image in array:
            if self.as_npz:
                self._kept.append(image)
            else:
                write_atomically(self._image(self.made), png(image))
            self.made += 1

    def write_record(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write run.json, and return its content."""
        record = {"status": status, "images": self.made, "settings": self.settings, **facts}
        write_atomically(self.folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        return record

    def finish(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write the sheet, samples.npz and run.json for what was made so far, and return the last one's content."""
        self.made = self._count()  # an interruption may have come between a file and its being counted
        if self.made:
            shown = min(self.made, SHEET)
            first = self._kept[:shown] if self.as_npz else [read(self._image(i)) for i in range(shown)]
            write_atomically(self.folder / "grid.png", png(sheet(np.stack(first))))
        if self._kept:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=np.stack(self._kept))
            write_atomically(self.folder / "samples.npz", buffer.getvalue())
        return self.write_record(status, **facts)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in (*new, *(key for key in old if key not in new)) if old.get(key) != new.get(key)]
    return "; ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
