"""What hatchling runs when a package is built: the commit goes into it, as `fewstep --version` says it."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE = "fewstep/commit.txt"
DESCRIBE = ("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


class CommitHook(BuildHookInterface):
    """Of a checkout only: an sdist has the file already, and an editable install would keep an old one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not (Path(self.root) / ".git").exists():
            return
        commit = subprocess.run(DESCRIBE, cwd=self.root, capture_output=True, text=True, check=True).stdout
        self.folder = tempfile.TemporaryDirectory()  # lives as long as the build
        path = Path(self.folder.name) / "commit.txt"
        path.write_text(commit)
        build_data["force_include"][str(path)] = f"src/{FILE}" if self.target_name == "sdist" else FILE
