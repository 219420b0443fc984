"""Measurements on disk: a line each, written as soon as it is made, so that an interrupted run goes on."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import check_writable, write_atomically

__all__ = ["Key", "Measurement", "Results"]

Key = tuple[str, int, str, str]


@dataclass(frozen=True)
class Measurement:
    """One solver on one grid, schedule and budget of one problem.

    errors and gains are one a sample; agrees says of each whether its nearest training image is the solution's. The
    Fréchet distance, of more samples, has those of its resamples beside it. Empty where nothing is measured.
    """

    schedule: str
    nfe: int
    solver: str
    grid: str
    errors: list[float]
    gains: list[float]
    agrees: list[bool]
    frechet: float | None
    frechets: list[float]

    @property
    def key(self) -> Key:
        return self.schedule, self.nfe, self.solver, self.grid

    @property
    def rmse(self) -> float:
        """Per pixel, over all samples."""
        return math.sqrt(statistics.fmean(error**2 for error in self.errors))

    @property
    def gain(self) -> float:
        return statistics.fmean(self.gains)


class Results:
    """The measurements of one problem, in `folder`: results.jsonl, and the solutions that errors refer to.

    `heats` are those of peers on a part of the samples, in a folder of their own.
    """

    def __init__(self, folder: Path):
        check_writable(folder)
        self.folder, self.path = folder, folder / "results.jsonl"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # an interruption may have cut the last line
        if whole != text:
            write_atomically(self.path, whole.encode())
        found = (Measurement(**json.loads(line)) for line in whole.splitlines())
        self._found = {each.key: each for each in found}

    @cached_property
    def heats(self) -> Results:
        return Results(self.folder / "heats")

    def keep_to(self, fingerprint: str) -> None:
        """Hold measurements of the network of this fingerprint, and refuse to add those of another."""
        path = self.folder / "fingerprint.txt"
        if not path.exists():
            write_atomically(path, f"{fingerprint}\n".encode())
        elif path.read_text(encoding="utf-8").strip() != fingerprint:
            raise ValueError(
                f"{self.folder} holds measurements of another network: remove it, or choose another folder"
            )

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._found.values())

    def get(self, key: Key) -> Measurement | None:
        return self._found.get(key)

    def add(self, measurement: Measurement) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(measurement)) + "\n")
        self._found[measurement.key] = measurement

    def forget(self, solver: str) -> None:
        """Drop the measurements of a solver, to be made again."""
        self._found = {key: each for key, each in self._found.items() if each.solver != solver}
        write_atomically(self.path, "".join(json.dumps(asdict(each)) + "\n" for each in self).encode())

    def solution(self, schedule: str, make: Callable[[], Tensor]) -> Tensor:
        """The converged solution on a schedule, made once."""
        path = self.folder / f"solution-{schedule}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        made = make()
        buffer = io.BytesIO()
        np.save(buffer, made.numpy(), allow_pickle=False)
        write_atomically(path, buffer.getvalue())
        return made
