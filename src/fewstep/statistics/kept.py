"""Points of an estimate, kept as soon as they are known, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..files import check_file
from ..schedule import Schedule
from ..store import Store
from .tables import describe

__all__ = ["kept"]

Once = Callable[[str, Callable[[], Tensor]], Tensor]


class Saved(Protocol):
    def save(self, path: str | Path) -> None: ...


Save = Callable[[Saved], None]


@contextmanager
def kept(
    out: str | Path | None,
    kind: type[Saved],
    fingerprint: str | None,
    schedule: Schedule,
    data: Sequence[Tensor | None],
    how: Mapping[str, Any],
) -> Iterator[tuple[Once, Save]]:
    """`once(name, make)`: what `make` answers, now or in an earlier run; `save`: the table to `out`, instead of points.

    Points are in the folder `out` + ".parts", of a model, schedule, data and way to estimate. Without `out` nothing is
    kept.
    """
    if out is None:
        yield lambda name, make: make(), lambda found: None
        return
    if fingerprint is None:
        raise ValueError("out needs a fingerprint, so that no point of another model is taken: see fewstep.fingerprint")
    path = Path(out)
    check_file(path, "out")
    settings = {
        "statistics": kind.__name__, "model": fingerprint, "schedule": describe(schedule), "data": _digest(data), **how,
        "torch": torch.__version__,
    }  # fmt: skip
    instead = "remove that folder to begin anew"
    with Store(path.with_name(f"{path.name}.parts"), settings, argument="out", instead=instead) as store:

        def once(name: str, make: Callable[[], Tensor]) -> Tensor:
            file = f"{name}.npy"
            if store.holds(file):
                return torch.from_numpy(np.load(io.BytesIO(store.read(file)), allow_pickle=False))
            made, buffer = make(), io.BytesIO()
            np.save(buffer, made.numpy(), allow_pickle=False)
            store.write({file: buffer.getvalue()})
            return made

        def save(found: Saved) -> None:
            found.save(path)
            store.remove()

        try:
            yield once, save
        except BaseException:
            if store.empty:
                store.remove()
            raise


def _digest(data: Sequence[Tensor | None]) -> str:
    digest = hashlib.sha256()
    for tensor in data:
        if isinstance(tensor, Tensor):  # what is none is refused later
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
