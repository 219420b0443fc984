"""A folder of samples: a `Store` of images and their sheet, which goes on where it stopped, and can be extended."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .files import read_npz
from .pictures import OURS, png, read, sheet
from .store import Store

__all__ = ["IMAGES", "LATENTS", "Run", "versions"]

SHEET = 256  # images on grid.png
GRID, NPZ = "grid.png", "samples.npz"
IMAGES, LATENTS = "images", "latents"


def versions(network: object = None) -> dict[str, str]:
    """Of what a result depends on: of diffusers only where the network is its."""
    library = type(network).__module__.partition(".")[0]
    packages = ("torch", "numpy", *(("diffusers",) if library == "diffusers" else ()))
    return {"fewstep": __version__, **{name: importlib.metadata.version(name) for name in packages}}


def numbered(index: int, kind: str) -> str:
    return f"{index:06d}{'.png' if kind == IMAGES else '.npz'}"


class Run(Store):
    """`run.json`, `SHA256SUMS`, `grid.png` (the first 256) and one PNG an image, or one `samples.npz`, in a folder.

    `settings` is everything that the pixels depend on, and `n`, which may grow. `missing` are the numbers of images
    that are not there, or damaged. `keep` says what is kept of each: its image, its latents, one `.npz` an image, or
    both. An npz run keeps its arrays in memory until `finish`. `name` has the names of files, and `draw` the pixels of
    `grid.png`, if it is another sheet.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        as_npz: bool = False,
        overwrite: bool = False,
        keep: Sequence[str] = (IMAGES,),
        name: Callable[[int, str], str] = numbered,
        draw: Callable[[Run], np.ndarray] | None = None,
    ):
        self.as_npz, self.keep, self.name = as_npz, tuple(keep), name
        self._draw = draw or Run._sheet
        sheet_name = [GRID] if IMAGES in keep else []
        files = [NPZ] if as_npz else [name for i in range(settings["n"]) for name in self._names(i)]
        names = sheet_name + files
        super().__init__(folder, settings, names=names, extends=("n",), overwrite=overwrite, instead="--overwrite")
        found = read_npz(folder / NPZ) if as_npz and self.holds(NPZ) else {}
        self._kept: dict[str, list[np.ndarray]] = {kind: list(found.get(kind, ())) for kind in self.keep}
        self.missing = self._count()

    @property
    def made(self) -> int:
        """How many images there are."""
        return int(self.settings["n"]) - len(self.missing)

    def complete(self) -> dict[str, Any] | None:
        """The record of the run in the folder, if it is done."""
        previous = self.previous
        whole = previous is not None and previous["settings"] == self.settings and previous.get("status") == "done"
        return previous if whole and not self.missing and (IMAGES not in self.keep or self.holds(GRID)) else None

    def _count(self) -> list[int]:
        n = self.settings["n"]
        if self.as_npz:
            return list(range(min(map(len, self._kept.values())), n))
        return [i for i in range(n) if not all(map(self.holds, self._names(i)))]

    def add(self, images: np.ndarray | None = None, latents: np.ndarray | None = None) -> None:
        """Keep the first of the missing images, (B, H, W, 3) uint8, or their latents; files are written at once."""
        given = {kind: array for kind, array in ((IMAGES, images), (LATENTS, latents)) if array is not None}
        if given.keys() != set(self.keep):
            raise ValueError(f"this run keeps {' and '.join(self.keep)}; got {' and '.join(given)}")
        count = min(map(len, given.values()))
        numbers = self.missing[:count]
        if len(numbers) < count:
            raise ValueError(f"{len(numbers)} images are missing; got {count}")
        if self.as_npz:
            for kind, array in given.items():
                self._kept[kind].extend(array)
        else:
            parts = {kind: map(png if kind == IMAGES else _latents, array) for kind, array in given.items()}
            self.write({self.name(i, kind): next(parts[kind]) for i in numbers for kind in self.keep})
        del self.missing[:count]

    def finish(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write the sheet, samples.npz and run.json for what was made so far, and return the last one's content."""
        self.missing = self._count()  # an interruption may have come between a file and its being counted
        contents = {}
        if self.as_npz and self.made:
            contents[NPZ] = _npz(**{kind: np.stack(arrays[: self.made]) for kind, arrays in self._kept.items()})
        if self.made and IMAGES in self.keep:
            contents[GRID] = png(self._draw(self))
        if contents:
            self.write(contents)
        return self.record(status, images=self.made, **facts)

    def present(self) -> dict[int, Path]:
        """The files of the images that there are, by number."""
        missing = set(self.missing)
        return {i: self.folder / self.name(i, IMAGES) for i in range(self.settings["n"]) if i not in missing}

    def _sheet(self) -> np.ndarray:
        first = self._kept[IMAGES][:SHEET] or [read(path, OURS) for path in islice(self.present().values(), SHEET)]
        return sheet(np.stack(first))

    def _names(self, index: int) -> list[str]:
        return [self.name(index, kind) for kind in self.keep]


def _latents(array: np.ndarray) -> bytes:
    return _npz(latents=array)


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
