"""The images of a bench: a `Store` for some seeds, in it a file a batch. Drawn once, wherever; if damaged, again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_npz
from ..store import Store

__all__ = ["Batch", "Shards", "encoded", "file_of", "split"]

Batch = Mapping[str, np.ndarray]
BATCHES = 4  # in a shard: what one process draws before another may


class Shards:
    """The images of the `seeds` in `folder`, `batch` of them a file. Iterating gives the shards, ranges of seeds."""

    def __init__(self, folder: Path, seeds: range, batch: int):
        self.folder, self.seeds, self.batch = folder, seeds, batch

    def __iter__(self) -> Iterator[range]:
        return split(self.seeds, self.batch * BATCHES)

    def path(self, shard: range) -> Path:
        return self.folder / f"{shard.start:08d}"

    def parts(self, shard: range) -> list[range]:
        return list(split(shard, self.batch))

    def settings(self, shard: range) -> dict[str, Any]:
        """What the images of a shard were drawn under."""
        path = self.path(shard) / "run.json"
        try:
            return dict(json.loads(path.read_bytes())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {self.remedy(shard)}") from error

    def remedy(self, shard: range) -> str:
        """What to do where nothing tells any more what the images of a shard were drawn under."""
        return f"remove {self.path(shard)}, which the same `fewstep bench run` draws again"

    def missing(self) -> list[range]:
        """The batches that are not there, or damaged."""
        return [part for shard in self for part in self._missing(shard)]

    def _missing(self, shard: range) -> list[range]:
        if not (self.path(shard) / "run.json").exists():
            return self.parts(shard)
        with Store(self.path(shard), self.settings(shard)) as store:
            return [part for part in self.parts(shard) if not store.holds(file_of(part))]

    def batch_of(self, part: range) -> Batch:
        shard = next(each for each in self if part.start in each)
        return read_npz(self.path(shard) / file_of(part))

    def read(self) -> Iterator[tuple[range, Batch]]:
        """All batches with their seeds, in order; ValueError if some are missing, or drawn under other settings."""
        missing = self.missing()
        if missing:
            raise ValueError(
                f"{sum(map(len, missing))} of {len(self.seeds)} images of {self.folder.name} are missing, the first of "
                f"seed {missing[0].start}: give the command that draws them again"
            )
        common: dict[str, Any] = {}
        for shard in self:
            found = self.settings(shard)
            common = common or found
            for key in {**common, **found}:
                if found.get(key) != common.get(key):
                    raise ValueError(
                        f"the images of {self.folder.name} are not of one kind, {key} was {common.get(key)!r} and from "
                        f"seed {shard.start} on {found.get(key)!r}: draw them anew, with --overwrite SOLVER"
                    )
            yield from ((part, self.batch_of(part)) for part in self.parts(shard))


def split(seeds: range, size: int) -> Iterator[range]:
    return (seeds[first : first + size] for first in range(0, len(seeds), size))


def file_of(part: range) -> str:
    return f"{part.start:08d}-{part[-1]:08d}.npz"


def encoded(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
