"""What some solvers need to know of a model: numbers estimated once, on a table in half log-SNR, and kept in a file.

`EMS` serves DPM-Solver-v3, `Gamma` Analytic-DPM; `estimate` makes both. A file is safetensors, which can hold
nothing but tensors and text: reading one runs no code. It records what it was estimated from, and is refused for
another model or another schedule.
"""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..files import write_atomically
from ..schedule import Node, Schedule

__all__ = ["EMS", "Gamma", "describe", "fingerprint", "load_statistics"]

FORMAT_VERSION = "1"
FACTS = ("schedule", "fingerprint", "origin")
# A table is not left for the rounding of its own ends.
SLACK = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class _Table:
    lam: Tensor

    @classmethod
    def _columns(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls) if f.name not in FACTS)

    def __post_init__(self) -> None:
        first = self._columns()[1]
        for name in self._columns():
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64, device="cpu").detach().contiguous()
            object.__setattr__(self, name, value)
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite; it holds NaN or inf")
            if name != "lam" and value.shape != getattr(self, first).shape:
                raise ValueError(
                    f"{name} must be of the shape of {first}, {tuple(getattr(self, first).shape)}; "
                    f"got {tuple(value.shape)}"
                )
        rising = self.lam.ndim == 1 and len(self.lam) > 1 and bool((self.lam.diff() > 0).all())
        if not rising or getattr(self, first).shape[:1] != self.lam.shape:
            raise ValueError(
                f"lam must be at least 2 rising numbers, and {first} have one entry for each; "
                f"got lam of shape {tuple(self.lam.shape)}, {first} of {tuple(getattr(self, first).shape)}"
            )

    @classmethod
    def expect(cls, value: object) -> None:
        """TypeError unless `value` is of this class."""
        if not isinstance(value, cls):
            raise TypeError(
                f"statistics must be {cls.__name__}, estimated with fewstep.estimate_{cls.__name__.lower()} or loaded "
                f"with {cls.__name__}.load; got {type(value).__name__}"
            )

    def __repr__(self) -> str:
        shape = tuple(getattr(self, self._columns()[-1]).shape[1:])
        low, high = self.lam_range
        return f"{type(self).__name__}({len(self.lam)} points, lam {low:.3g} to {high:.3g}, shape {shape})"

    @property
    def lam_range(self) -> tuple[float, float]:
        """The noisy and the clean end of the table, in half log-SNR."""
        return float(self.lam[0]), float(self.lam[-1])

    def check(self, schedule: Schedule, nodes: Sequence[Node]) -> None:
        """ValueError unless the table is of `schedule`, if it says of which, and reaches all nodes of finite lam."""
        recorded: str | None = getattr(self, "schedule", None)
        if recorded is not None and recorded != describe(schedule):
            raise ValueError(
                f"the statistics are of {recorded}, the run is on {describe(schedule)}: estimate them for this "
                "schedule, or, for the same model on another clock, use dataclasses.replace(statistics, schedule=None)"
            )
        low, high = self.lam_range
        for node in nodes:
            if math.isfinite(node.lam) and not low - SLACK <= node.lam <= high + SLACK:
                raise ValueError(
                    f"the statistics reach from lam {low:g} to {high:g}, the grid to {node.lam:g} (time {node.time:g}, "
                    f"sigma {node.sigma:g}): estimate them over a wider range, or stop the grid within theirs"
                )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all, in place of what is there."""
        save, _ = _safetensors()
        facts = {name: getattr(self, name) for name in FACTS if getattr(self, name) is not None}
        content = save(
            {name: getattr(self, name) for name in self._columns()},
            {"format": f"fewstep {type(self).__name__}", "version": FORMAT_VERSION, **facts},
        )
        write_atomically(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, *, schedule: Schedule | None = None, fingerprint: str | None = None) -> Self:
        """Read a file of `save`. Give `schedule` and `fingerprint` to refuse what was estimated from others."""
        found = load_statistics(path, schedule=schedule, fingerprint=fingerprint)
        if not isinstance(found, cls):
            raise ValueError(f"{path} does not hold {cls.__name__} statistics, but {type(found).__name__}")
        return found


@dataclass(frozen=True, eq=False, repr=False)
class EMS(_Table):
    """The empirical model statistics l, s, b of DPM-Solver-v3, each (points, *) at the half log-SNRs `lam` (points,).

    * is the shape of an image, or anything that broadcasts to it; with (points,) all elements share one number. Between
    points they are linear in lam. `schedule`, as `describe` writes it, and `fingerprint` say what they are of; `origin`
    is of all that they were estimated from, by which `estimate_ems` knows its file.
    """

    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor
    schedule: str | None = None
    fingerprint: str | None = None
    origin: str | None = None

    @classmethod
    def constant(cls, l: float = 1.0, s: float = 0.0, b: float = 0.0, end: float = 10.0) -> EMS:  # noqa: E741
        """The same at every lam in [-end, end]: (1, 0, 0) makes DPM-Solver-v3 DPM-Solver++, (0, -1, 0) DPM-Solver."""
        lam = torch.tensor([-end, end], dtype=torch.float64, device="cpu")
        ones = torch.ones_like(lam)
        return cls(lam, l * ones, s * ones, b * ones)


@dataclass(frozen=True, eq=False, repr=False)
class Gamma(_Table):
    """Gamma = E |noise predicted|^2 / d of Analytic-DPM, (points,) at the half log-SNRs `lam` (points,)."""

    gamma: Tensor
    schedule: str | None = None
    fingerprint: str | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma.ndim != 1:
            raise ValueError(f"gamma must be one number a point; got shape {tuple(self.gamma.shape)}")

    @classmethod
    def gaussian(cls, variance: float = 0.25, points: int = 201, end: float = 10.0) -> Gamma:
        """That of data N(0, variance I), which is sigma^2 / (alpha^2 variance + sigma^2), at lam in [-end, end]."""
        lam = torch.linspace(-end, end, points, dtype=torch.float64, device="cpu")
        return cls(lam, 1 / (1 + variance * (2 * lam).exp()))

    def posterior_variance(self, lam: float) -> float:
        """The variance of a pixel of x_0 given x, (1 - Gamma) sigma^2 / alpha^2; linear in lam between points.

        It tends to the variance of the data where there is more and more noise, and is taken for the same beyond the
        noisy end of the table. Estimates may put it slightly below 0.
        """
        low, high = self.lam_range
        lam = min(max(lam, low), high)
        i = min(int(torch.searchsorted(self.lam, lam, right=True)), len(self.lam) - 1)
        below, above = (float((1 - self.gamma[j]) * (-2 * self.lam[j]).exp()) for j in (i - 1, i))
        share = (lam - float(self.lam[i - 1])) / float(self.lam[i] - self.lam[i - 1])
        return below + share * (above - below)


def load_statistics(
    path: str | Path, *, schedule: Schedule | None = None, fingerprint: str | None = None
) -> EMS | Gamma:
    """Read a file of either kind; the rest is as in their `load`."""
    _, safe_open = _safetensors()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: make it with fewstep.estimate_ems or estimate_gamma")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except Exception as error:  # safetensors has several for a corrupt file
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(f"{path} is not a whole safetensors file ({reason}): copy it or estimate again") from error
    kinds = {f"fewstep {kind.__name__}": kind for kind in (EMS, Gamma)}
    format_, version = metadata.get("format"), metadata.get("version")
    if format_ not in kinds or set(tensors) != set(kinds[format_]._columns()):
        raise ValueError(f"{path} does not hold EMS or Gamma statistics, but {format_ or sorted(tensors)}")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} is of version {version}, this fewstep reads {FORMAT_VERSION}: estimate again")
    facts = {name: metadata.get(name) for name in FACTS}
    expected = {"schedule": None if schedule is None else describe(schedule), "fingerprint": fingerprint}
    for name, wanted in expected.items():
        if wanted is not None and facts[name] != wanted:
            raise ValueError(
                f"{path} was estimated from another {'model' if name == 'fingerprint' else name}: "
                f"{facts[name]}, not {wanted}: estimate again"
            )
    arguments: dict[str, Any] = {**tensors, **facts}
    return kinds[format_](**arguments)


def describe(schedule: Schedule) -> str:
    """The schedule in words that tell it from any other; without the data's scale, on which no statistics depend."""
    kind: type = type(schedule)
    if not is_dataclass(kind):
        return repr(schedule) if "__repr__" in vars(kind) else kind.__qualname__
    compared = [f for f in fields(kind) if f.compare and f.name != "data_std"]
    values = {f.name: repr(getattr(schedule, f.name)) for f in compared}
    told = ", ".join(f"{f.name}={values[f.name]}" for f in compared if f.repr)
    digests = [f"{f.name}:{hashlib.sha256(values[f.name].encode()).hexdigest()[:16]}" for f in compared if not f.repr]
    return " ".join([f"{kind.__qualname__}({told})", *digests])


def fingerprint(network: torch.nn.Module, **facts: object) -> str:
    """A SHA-256 of the network's parameters and buffers, names, types and shapes included, and of `facts`.

    Name as facts what else the answers depend on: preconditioning, labels, guidance. Weights in another precision are
    another network.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr(sorted(facts.items())).encode())
    return digest.hexdigest()


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors import safe_open
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError("statistics files need safetensors: pip install 'fewstep[cli]'") from error
    return save, safe_open
