"""The shards of independent jobs, brought together in one folder, with their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..store import Store
from .draw import cells_of, shards_of
from .plan import Plan
from .shards import Shards, file_of

__all__ = ["bring_together"]


def bring_together(plans: Sequence[Plan], folders: Sequence[Path], out: Path) -> Plan:
    """Copy to `out` what it lacks, and return the plan. ValueError if the folders are of different plans."""
    plan = plans[0]
    for other, folder in zip(plans, folders, strict=True):
        if other != plan:
            raise ValueError(f"{folder} is of another bench than {folders[0]}: merge the shards of one")
    for cell in cells_of(plan, solutions=True):
        target = shards_of(plan, out, cell)
        for folder in folders:
            if folder.resolve() != out.resolve():
                _copy(shards_of(plan, folder, cell), target)
    return plan


def _copy(source: Shards, target: Shards) -> None:
    for shard in source:
        if (source.path(shard) / "run.json").exists():
            settings = source.settings(shard)
            with Store(source.path(shard), settings) as given, Store(target.path(shard), settings) as taken:
                for name in map(file_of, source.parts(shard)):
                    if given.holds(name) and not taken.holds(name):
                        taken.write({name: given.read(name)})
