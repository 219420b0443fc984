"""Measurements on disk: a line each, written as soon as it is made, so that an interrupted run goes on."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.bench.metrics import Moments
from fewstep.files import append, check_writable, write_atomically

__all__ = ["Distance", "Key", "Measurement", "Results", "rms"]

Key = tuple[str, int, str, str]
TAG = 8  # digits of a fingerprint in the names of files


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance of `samples` images, and those of its resamples."""

    value: float
    samples: int
    resampled: list[float]


@dataclass(frozen=True)
class Measurement:
    """One solver on one grid, schedule and budget of one problem.

    errors and gains are one a sample; agrees says of each whether its nearest training image is the solution's.
    distances are of more samples, by what they are to. Empty where nothing is measured.
    """

    schedule: str
    nfe: int
    solver: str
    grid: str
    errors: list[float]
    gains: list[float]
    agrees: list[bool]
    distances: dict[str, Distance]

    @classmethod
    def read(cls, line: str) -> Measurement:
        found = json.loads(line)
        distances = {to: Distance(**each) for to, each in found.pop("distances").items()}
        return cls(**found, distances=distances)

    @property
    def key(self) -> Key:
        return self.schedule, self.nfe, self.solver, self.grid

    @property
    def rmse(self) -> float:
        """Per pixel, over all samples."""
        return rms(self.errors)

    @property
    def gain(self) -> float:
        return statistics.fmean(self.gains)


def rms(errors: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(error**2 for error in errors))


class Results:
    """The measurements of one problem, in `folder`: results.jsonl, and the solutions that errors refer to.

    `heats` are those of peers on a part of the samples, in a folder of their own. `fingerprint` is that of the network,
    if there is one: a folder with measurements of another is refused, and solutions carry it in their names, since they
    stay behind where measurements are exchanged.
    """

    def __init__(self, folder: Path, fingerprint: str | None = None):
        check_writable(folder)
        self.folder, self.path = folder, folder / "results.jsonl"
        self.tag = "" if fingerprint is None else f"-{fingerprint[:TAG]}"
        if fingerprint is not None:
            self._keep_to(fingerprint)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # an interruption may have cut the last line
        if whole != text:
            write_atomically(self.path, whole.encode())
        found = (Measurement.read(line) for line in whole.splitlines())
        self._found = {each.key: each for each in found}

    @cached_property
    def heats(self) -> Results:
        return Results(self.folder / "heats")

    def _keep_to(self, fingerprint: str) -> None:
        path = self.folder / "fingerprint.txt"
        if not path.exists():
            write_atomically(path, f"{fingerprint}\n".encode())
        elif path.read_text(encoding="utf-8").strip() != fingerprint:
            raise ValueError(
                f"{self.folder} holds measurements of another network: remove it, or choose another folder"
            )

    def holds(self, key: Key, targets: Collection[str], many: int, samples: int = 0) -> bool:
        """Whether it was measured, with distances of `many` samples to all `targets`, and errors of `samples`."""
        found = self._found.get(key)
        return (
            found is not None
            and len(found.errors) >= samples
            and all(to in found.distances and found.distances[to].samples == many for to in targets)
        )

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._found.values())

    def get(self, key: Key) -> Measurement | None:
        return self._found.get(key)

    def add(self, measurement: Measurement) -> None:
        """Of measurements of the same, the last counts."""
        append(self.path, (json.dumps(asdict(measurement)) + "\n").encode())
        self._found[measurement.key] = measurement

    def forget(self, solver: str) -> None:
        """Drop the measurements of a solver, to be made again."""
        self._found = {key: each for key, each in self._found.items() if each.solver != solver}
        write_atomically(self.path, "".join(json.dumps(asdict(each)) + "\n" for each in self).encode())

    def solution(self, schedule: str, make: Callable[[], Tensor]) -> Tensor:
        """The converged solution on a schedule, made once."""
        return self._once(f"solution-{schedule}", make)

    def moments(self, name: str, make: Callable[[], Moments]) -> Moments:
        """Those that distances to `name` refer to, made once."""

        def rows() -> Tensor:
            made = make()
            return torch.vstack((made.mean, made.covariance))

        found = self._once(f"moments-{name}", rows)
        return Moments(found[0], found[1:])

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        path = self.folder / f"{name}{self.tag}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        made = make()
        buffer = io.BytesIO()
        np.save(buffer, made.numpy(), allow_pickle=False)
        write_atomically(path, buffer.getvalue())
        return made
