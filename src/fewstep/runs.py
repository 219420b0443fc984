"""A folder of samples that survives interruption: files appear whole or not at all; a run goes on where it stopped."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .pictures import png, sheet

__all__ = ["Run", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that it is never seen half written."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class Run:
    """`run.json`, `grid.png` and one PNG an image, or one `samples.npz`, in a folder.

    `settings` is everything that the pixels depend on. A folder whose run.json has the same settings is
    continued; one with others is refused unless `overwrite`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], as_npz: bool, overwrite: bool = False):
        self.folder, self.settings, self.as_npz = folder, dict(settings), as_npz
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / ".writable", b"")
            (folder / ".writable").unlink()
        except OSError as error:
            raise OSError(f"cannot write to {folder} ({error.strerror or error}): choose another --out") from error
        previous = self._previous()
        if overwrite:
            for stale in [*folder.glob("[0-9]" * 6 + ".png"), *folder.glob("samples.npz")]:
                stale.unlink()
        elif previous is not None and previous != self.settings:
            raise FileExistsError(f"{folder} holds another run: choose another --out, or --overwrite it")
        self.images = self._found()

    def _previous(self) -> dict[str, Any] | None:
        """The settings of the run in the folder; None if there is none, empty if it is not one of ours."""
        try:
            return dict(json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["settings"])
        except FileNotFoundError:
            return {} if self._image(0).exists() or (self.folder / "samples.npz").exists() else None
        except (ValueError, KeyError, TypeError):
            return {}

    def _found(self) -> list[np.ndarray]:
        if self.as_npz:
            path = self.folder / "samples.npz"
            return list(np.load(path, allow_pickle=False)["images"]) if path.exists() else []
        found: list[np.ndarray] = []
        while (path := self._image(len(found))).exists() and len(found) < self.settings["n"]:
            found.append(np.asarray(Image.open(path).convert("RGB")))
        return found

    def _image(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def add(self, array: np.ndarray) -> None:
        """Keep the next images, (B, H, W, 3) uint8; PNG files are written at once."""
        for image in array:
            if not self.as_npz:
                write_atomically(self._image(len(self.images)), png(image))
            self.images.append(image)

    def finish(self, status: str, **facts: Any) -> dict[str, Any]:
        """Write the sheet and run.json, with what was made so far, and return the latter's content."""
        if self.images:
            array = np.stack(self.images)
            write_atomically(self.folder / "grid.png", png(sheet(array)))
            if self.as_npz:
                buffer = io.BytesIO()
                np.savez_compressed(buffer, images=array)
                write_atomically(self.folder / "samples.npz", buffer.getvalue())
        record = {"status": status, "images": len(self.images), "settings": self.settings, **facts}
        write_atomically(self.folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())
        return record
