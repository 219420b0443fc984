"""A folder of samples: a `Store` of images and their sheet, which goes on where it stopped, and can be extended."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .files import read_npz
from .pictures import png, read, sheet
from .store import Store

__all__ = ["Run", "versions"]

SHEET = 256  # images on grid.png
GRID, NPZ = "grid.png", "samples.npz"


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    packages = ("torch", "numpy", "diffusers")
    return {"fewstep": __version__, **{name: importlib.metadata.version(name) for name in packages}}


class Run(Store):
    """`run.json`, `SHA256SUMS`, `grid.png` (the first 256) and one PNG an image, or one `samples.npz`, in a folder.

    `settings` is everything that the pixels depend on, and `n`, which may grow. `missing` are the numbers of images
    that are not there, or damaged. An npz run keeps its images in memory until `finish`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], as_npz: bool = False, overwrite: bool = False):
        n = settings["n"]
        names = [GRID, NPZ] if as_npz else [GRID, *map(_name, range(n))]
        super().__init__(folder, settings, names=names, extends=("n",), overwrite=overwrite)
        self.as_npz = as_npz
        self._kept = list(read_npz(folder / NPZ)["images"]) if as_npz and self.holds(NPZ) else []
        self.missing = self._count()

    @property
    def made(self) -> int:
        """How many images there are."""
        return int(self.settings["n"]) - len(self.missing)

    def complete(self) -> dict[str, Any] | None:
        """The record of the run in the folder, if it is done."""
        previous = self.previous
        whole = previous is not None and previous["settings"] == self.settings and previous.get("status") == "done"
        return previous if whole and not self.missing and self.holds(GRID) else None

    def _count(self) -> list[int]:
        n = self.settings["n"]
        if self.as_npz:
            return list(range(len(self._kept), n))
        return [i for i in range(n) if not self.holds(_name(i))]

    def add(self, array: np.ndarray) -> None:
        """Keep the first of the missing images, (B, H, W, 3) uint8; PNG files are written at once."""
        numbers = self.missing[: len(array)]
        if len(numbers) < len(array):
            raise ValueError(f"{len(numbers)} images are missing; got {len(array)}")
        if self.as_npz:
            self._kept.extend(array)
        else:
            self.write({_name(i): png(image) for i, image in zip(numbers, array, strict=True)})
        del self.missing[: len(array)]

    def finish(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write the sheet, samples.npz and run.json for what was made so far, and return the last one's content."""
        self.missing = self._count()  # an interruption may have come between a file and its being counted
        contents = {}
        if self._kept:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=np.stack(self._kept))
            contents[NPZ] = buffer.getvalue()
        if self.made:
            first = self._kept[:SHEET] or [read(self.folder / _name(i)) for i in self._first()]
            contents[GRID] = png(sheet(np.stack(first)))
        if contents:
            self.write(contents)
        return self.record(status, images=self.made, **facts)

    def _first(self) -> list[int]:
        missing = set(self.missing)
        return [i for i in range(self.settings["n"]) if i not in missing][:SHEET]


def _name(index: int) -> str:
    return f"{index:06d}.png"
