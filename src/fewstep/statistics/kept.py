"""Points of an estimate, kept as soon as they are known, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..files import check_file
from ..schedule import Schedule
from ..store import Store
from .tables import describe

__all__ = ["kept"]

Once = Callable[[str, Callable[[], Tensor]], Tensor]
# As Python and the command line say it.
ARGUMENT, INSTEAD = "out (--out)", "overwrite=True (--overwrite)"


class Saved(Protocol):
    @property
    def schedule(self) -> str | None: ...
    @property
    def origin(self) -> str | None: ...
    def save(self, path: str | Path) -> None: ...
    @classmethod
    def load(cls, path: str | Path) -> Self: ...


S = TypeVar("S", bound=Saved)


def kept(
    out: str | Path | None,
    overwrite: bool,
    kind: type[S],
    fingerprint: str | None,
    schedule: Schedule,
    data: Sequence[Tensor | None],
    how: Mapping[str, Any],
    make: Callable[[Once, str | None], S],
) -> S:
    """What `make(once, origin)` makes, saved to `out`. `once(name, point)`: what `point` answers, now or in an earlier
    run; `origin`: a digest of the model, schedule, data and way to estimate, by which a file is known.

    Until it is done points are in the folder `out` + ".parts". A file of the same origin is read; any other is refused,
    or replaced if `overwrite`, when there is what replaces it. Without `out` nothing is kept.
    """
    if out is None:
        if overwrite:
            raise ValueError("overwrite=True needs out, the file that may be replaced")
        return make(lambda name, point: point(), None)
    if fingerprint is None:
        raise ValueError("out needs a fingerprint, so that no point of another model is taken: see fewstep.fingerprint")
    path = Path(out)
    check_file(path, "out")
    settings = {
        "statistics": kind.__name__, "model": fingerprint, "schedule": describe(schedule), "data": _digest(data), **how,
        "torch": torch.__version__,
    }  # fmt: skip
    origin = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    parts = path.with_name(f"{path.name}.parts")
    with Store(parts, settings, overwrite=overwrite, argument=ARGUMENT, instead=INSTEAD) as store:

        def once(name: str, point: Callable[[], Tensor]) -> Tensor:
            file = f"{name}.npy"
            if store.holds(file):
                return torch.from_numpy(np.load(io.BytesIO(store.read(file)), allow_pickle=False))
            made, buffer = point(), io.BytesIO()
            np.save(buffer, made.numpy(), allow_pickle=False)
            store.write({file: buffer.getvalue()})
            return made

        try:
            found = _finished(kind, path)
            if found is None or (found.origin, found.schedule) != (origin, settings["schedule"]):
                if path.exists() and not overwrite:
                    raise FileExistsError(
                        f"{path} is there, and is not what is asked for: choose another {ARGUMENT}, or {INSTEAD}"
                    )
                found = make(once, origin)
                found.save(path)
            store.remove()
        except BaseException:
            if store.empty:
                store.remove()
            raise
    return found


def _finished(kind: type[S], path: Path) -> S | None:
    """What the file holds, if that is of the kind."""
    try:
        return kind.load(path)
    except (ValueError, OSError):
        return None


def _digest(data: Sequence[Tensor | None]) -> str:
    digest = hashlib.sha256()
    for tensor in data:
        if isinstance(tensor, Tensor):  # what is none is refused later
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
