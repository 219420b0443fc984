"""The experiments of the EVODiff papers, a TOML file each: settings, published figures, and the files they need."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Preset", "load_preset", "presets"]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """`plan` holds keys of a `Plan`; `files` says, by the key that takes it, what a user has to download or write."""

    title: str
    plan: Mapping[str, Any]
    files: Mapping[str, str]

    def filled(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The plan with the keys of `given`; FileNotFoundError that tells of the files that are not given."""
        lacking = [f"{key}: {what}" for key, what in self.files.items() if not given.get(key)]
        if lacking:
            raise FileNotFoundError(f"preset {name} needs files of yours, given by these keys. {'; '.join(lacking)}")
        return {**self.plan, **given}


def presets() -> dict[str, Preset]:
    """All of them by name."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.toml"))}


def load_preset(name: str) -> Preset:
    path = FOLDER / f"{name}.toml"
    if path not in FOLDER.glob("*.toml"):
        raise ValueError(f"no preset {name!r}; choose from {', '.join(presets())}")
    return _read(path)


def _read(path: Path) -> Preset:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return Preset(content["title"], content["plan"], content.get("files", {}))
