"""The rows of the table: what the images of each cell are worth, and what reproduces it."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_atomically
from ..pictures import pixels
from .draw import cells_of, shards_of
from .extractors import Extractor, Reference, load_extractor, load_reference
from .metrics import Running, frechet_distance
from .plan import Cell, Plan
from .shards import Shards
from .subjects import Subject, imported

__all__ = ["CALL", "Judge", "measure", "read_rows"]

ROWS, FIGURES = "rows.json", "figures.json"
Row = dict[str, Any]
NEEDED = (*Cell._fields, "milliseconds", "memory", "drawn under", "measured by")  # of a row
CALL = "one evaluation of the denoiser on a batch; guidance evaluates the network twice in it"
FIDELITY = {
    "isc": "inception_score_mean",
    "kid": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}  # of torch-fidelity


class Judge:
    """What measures the images of a plan; everything that can be wrong with it is told when it is made."""

    def __init__(self, plan: Plan, device: str):
        self.plan, self.device = plan, device
        self.extractor: Extractor | None = None
        self.reference: Reference | None = None
        self.scores: dict[str, Any] = {name: imported(function) for name, function in plan.scores.items()}
        wanted = set(plan.metrics)
        if wanted & {"clip", "aesthetic"}:
            from .text import Aesthetic, Clip, ClipScore

            clip = Clip(plan.clip, device)
            if "clip" in wanted:
                self.scores["clip"] = ClipScore(clip, plan.texts())
            if "aesthetic" in wanted:
                self.scores["aesthetic"] = Aesthetic(clip, plan.aesthetic)
        if wanted & {"frechet", *FIDELITY}:
            self.extractor = load_extractor(plan.extractor, plan.weights, device)
        if self.extractor is not None and wanted & {"frechet", "kid", "precision", "recall"}:
            self.reference = load_reference(plan.reference, self.extractor)
        if wanted & set(FIDELITY) and plan.extractor != "inception":
            raise ValueError(f"{', '.join(wanted & set(FIDELITY))} are of Inception: set extractor = 'inception'")
        if wanted & {"kid", "precision", "recall"} and (self.reference is None or self.reference.images is None):
            raise ValueError("kid, precision and recall need the images of the reference: give an npz file of images")

    def try_on(self, subject: Subject) -> None:
        """Whether the extractor takes this model's images, and its features are the reference's."""
        if self.extractor is None:
            return
        images = torch.from_numpy(pixels(subject.decode(torch.zeros(2, *subject.shape, device=self.device))))
        features = self.extractor(images.permute(0, 3, 1, 2).contiguous())
        if self.reference is not None and len(self.reference.moments.mean) != features.shape[1]:
            raise ValueError(
                f"the reference is of {len(self.reference.moments.mean)} features, the extractor has "
                f"{features.shape[1]}: give the reference of this extractor, or images"
            )

    def identity(self) -> dict[str, Any]:
        """What the figures depend on besides the images."""
        return {
            "metrics": list(self.plan.metrics), "scores": dict(self.plan.scores),
            "extractor": self.extractor.identity if self.extractor else None,
            "reference": self.reference.identity if self.reference else None,
            "frechet is": self.extractor.title if self.extractor else None,
            **{f"{name} is": score.identity for name, score in self.scores.items() if name in self.plan.metrics},
        }  # fmt: skip

    def figures(self, shards: Shards) -> dict[str, float]:
        """The metrics of the images. Features are not kept; those of torch-fidelity's own metrics are."""
        running, totals, count = Running(), dict.fromkeys(self.scores, 0.0), 0
        for part, batch in shards.read():
            images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).contiguous()
            count += len(images)
            if self.reference is not None and "frechet" in self.plan.metrics and self.extractor is not None:
                running.add(self.extractor(images).cpu())
            for name, score in self.scores.items():
                totals[name] += float(torch.as_tensor(score(images, part)).double().sum())
        found = {name: total / count for name, total in totals.items()}
        if running.count and self.reference is not None:
            found["frechet"] = frechet_distance(running.moments(), self.reference.moments)
        wanted = [name for name in self.plan.metrics if name in FIDELITY]
        if wanted:
            from .fidelity import measures

            known = measures(
                shards, self.reference.images if self.reference else None, wanted, self.plan.weights, self.device
            )
            found |= {name: known[FIDELITY[name]] for name in wanted}
        return found


def measure(plan: Plan, folder: Path, judge: Judge, say: Callable[[str], object] = lambda text: None) -> list[Row]:
    """The rows of the plan, also in `rows.json`; ValueError if images are missing.

    That of the converged solution, if there is one, says what a solver without error would come to.

    What is measured of a cell is kept beside its images, and used as long as they are the same.
    """
    rows = []
    for cell in cells_of(plan, solutions=True):
        shards = shards_of(plan, folder, cell)
        facts = _facts(cell, shards)
        basis = {"images": facts["images"], "measured by": judge.identity()}
        path = shards.folder / FIGURES
        known = _figures(path)
        if {key: known.get(key) for key in basis} != basis:
            say(f"measuring {cell.folder}")
            known = {**basis, "figures": judge.figures(shards)}
            write_atomically(path, as_json(known))
        rows.append({**facts, **known["figures"], "measured by": known["measured by"]})
    write_atomically(folder / ROWS, as_json({"a call is": CALL, "plan": plan.record(), "rows": rows}))
    return rows


def _figures(path: Path) -> dict[str, Any]:
    """What was measured of a cell; nothing if the file is damaged, as it is then measured again."""
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError:
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("figures"), dict) else {}


def as_json(content: object) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def read_rows(folder: Path) -> list[Row]:
    """The rows of the last run that ended, or none."""
    path = folder / ROWS
    if not path.exists():
        return []
    try:
        rows = list(json.loads(path.read_bytes())["rows"])
        for row in rows:
            _ = [row[key] for key in NEEDED]
        return rows
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: remove it and give the run again") from error


def _facts(cell: Cell, shards: Shards) -> dict[str, Any]:
    """What was kept with the images: seconds vary from run to run, the rest does not."""
    digest, calls, memory, seconds, compared = hashlib.sha256(), set(), 0, [], False
    squares, gained = 0.0, list[float]()
    for _, batch in shards.read():
        digest.update(batch["images"].tobytes())
        calls.add(int(batch["calls"]))
        memory = max(memory, int(batch["memory"]))
        seconds.append(float(batch["seconds"]) / len(batch["images"]))
        if "rmse" in batch:
            compared = True
            squares += float(np.square(batch["rmse"]).sum())
            gained += batch["gain"][~np.isnan(batch["gain"])].tolist()
    n = len(shards.seeds)
    if calls != {cell.calls}:
        raise ValueError(
            f"{shards.folder.name} took {sorted(calls)} calls, not {cell.calls}: draw it anew, with --overwrite "
            f"{cell.solver}"
        )
    errors = {"rmse": math.sqrt(squares / n)} if compared else {}
    if gained:  # a solution without contrast has no gain
        errors["gain"] = sum(gained) / len(gained)
    return {
        **cell._asdict(), "n": n, "seed": shards.seeds.start, **errors,
        "milliseconds": 1000 * statistics.median(seconds), "memory": memory, "images": digest.hexdigest(),
        "drawn under": shards.settings(next(iter(shards))),
    }  # fmt: skip
