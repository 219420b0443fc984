"""What `fewstep sample` keeps when it is killed, told to end, out of room, or not alone: counted, each image compared.

    python -m benchmarks.robustness

Exits with 1 if an image was lost or was another's, or a record was not true.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fewstep.bench.markdown import table
from fewstep.models import DEFAULT_MODEL

from .command import say

__all__ = ["Check"]

How = tuple[str, ...]
FIRST: How = ("--solver", "evodiff", "--seed", "0")
SECOND: How = ("--solver", "ddim", "--seed", "500")
PATIENCE = 300  # seconds for a process to draw an image
AFTER = 0.5  # seconds, at most, from the first new image to the signal
INTERRUPTED = 130
ROOM, MORE_ROOM = "200k", "20m"


class Check:
    """Runs of `n` images of one model, each beside what it draws undisturbed; `faults` is what was wrong."""

    def __init__(self, folder: Path, model: str, n: int):
        self.folder, self.model, self.n = folder, model, n
        self.faults: list[str] = []
        self._alone: dict[How, dict[str, bytes]] = {}

    def command(self, how: How, out: Path) -> list[str]:
        small = ("--model", self.model, "--n", str(self.n), "--nfe", "2", "--batch-size", "1")
        return [sys.executable, "-m", "fewstep", "sample", *small, *how, "--out", str(out)]

    def start(self, how: How, out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(how, out), stderr=subprocess.PIPE, text=True, start_new_session=True)

    def alone(self, how: How) -> dict[str, bytes]:
        """The images of the run that nothing disturbs."""
        if how not in self._alone:
            out = self.folder / f"alone-{how[1]}"
            subprocess.run(self.command(how, out), check=True, capture_output=True)
            self._alone[how] = images(out)
        return self._alone[how]

    def signals(self, number: signal.Signals, count: int) -> str:
        """Runs that get a signal at a random moment after their first new image, and go on."""
        out, kept = self.folder / number.name, 0
        for i in range(count):
            if len(images(out)) > self.n * 2 // 3:
                shutil.rmtree(out)
            before = images(out)
            process = self.start(FIRST, out)
            deadline = time.monotonic() + PATIENCE
            while len(list(out.glob("0*.png"))) <= len(before) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(random.random() * AFTER)
            process.send_signal(number)
            said = process.communicate()[1].splitlines()
            if process.returncode == 0:  # it was quicker
                continue
            after, record = images(out), json.loads((out / "run.json").read_text())
            self._expect(before.items() <= after.items(), f"{number.name} {i}: an image from before is gone")
            self._expect_own(FIRST, after, f"{number.name} {i}")
            kept += len(after) - len(before)
            if number == signal.SIGTERM:
                told = [line for line in said if line.startswith("interrupted: ")]
                self._expect(process.returncode == INTERRUPTED and len(told) == 1, f"SIGTERM {i}: {said}")
                true = (record["status"], record.get("images")) == ("interrupted", len(after))
            else:
                true = record["status"] == "running"
            self._expect(true, f"{number.name} {i}: the record says {record['status']}, {record.get('images')}")
        self._expect_done(FIRST, out, number.name)
        return f"{kept} images made, all there"

    def full_disk(self) -> str:
        """A run on a disk without room for it, and the same when there is."""
        out, disk = self.folder / "full", self.folder / "disk"
        disk.mkdir()
        command = " ".join(f"'{part}'" for part in self.command(FIRST, disk / "run"))
        script = f"""
            mount -t tmpfs -o size={ROOM} none '{disk}' || exit 77
            {command} 2> '{self.folder}/said'; echo $? > '{self.folder}/code'
            cp -a '{disk}/run' '{out}-before'
            mount -o remount,size={MORE_ROOM} none '{disk}'
            {command} && cp -a '{disk}/run' '{out}'
        """
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
        if done.returncode == 77:
            return "not tried: this system lets no user mount a tmpfs"
        said, code = (self.folder / "said").read_text(), (self.folder / "code").read_text().strip()
        self._expect(code == "1" and f"cannot write {disk}" in said and "No space left" in said, f"full disk: {said}")
        before = images(Path(f"{out}-before"))
        self._expect(0 < len(before) < self.n, f"full disk: {len(before)} images before the end")
        self._expect_own(FIRST, before, "full disk")
        self._expect_done(FIRST, out, "full disk")
        return f"{len(before)} of {self.n} images before, the file named, all after"

    def pairs(self, count: int) -> str:
        """Two different runs into one folder, begun at nearly the same time."""
        won: Counter[str] = Counter()
        for i in range(count):
            out = self.folder / f"pair-{i}"
            processes = {}
            for how in random.sample((FIRST, SECOND), 2):
                processes[how] = self.start(how, out)
                time.sleep(random.random() * AFTER)
            said = {how: process.communicate()[1] for how, process in processes.items()}
            codes = {how: process.returncode for how, process in processes.items()}
            winners = [how for how, code in codes.items() if code == 0]
            self._expect(sorted(codes.values()) == [0, 1], f"pair {i}: exit codes {list(codes.values())}, {said}")
            for how in winners[:1]:
                (refused,) = (text for other, text in said.items() if other != how)
                told = "in use by another run" in refused or "holds another run" in refused
                self._expect(told, f"pair {i}: {refused}")
                self._expect_done(how, out, f"pair {i}")
                won[how[1]] += 1
        return ", ".join(f"{name} had the folder {times} times" for name, times in won.items())

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.faults.append(otherwise)
            say(otherwise)

    def _expect_own(self, how: How, found: Mapping[str, bytes], when: str) -> None:
        foreign = [name for name, content in found.items() if self.alone(how).get(name) != content]
        self._expect(not foreign, f"{when}: {foreign} are not what this run draws")

    def _expect_done(self, how: How, out: Path, when: str) -> None:
        """After the same command once more, which finds nothing to complain of."""
        done = subprocess.run(self.command(how, out), capture_output=True, text=True)
        self._expect(done.returncode == 0 and "damaged" not in done.stderr, f"{when}: {done.stderr}")
        self._expect(images(out) == self.alone(how), f"{when}: other images at the end")
        record = json.loads((out / "run.json").read_text())
        true = (record["status"], record["images"], record["settings"]["solver"]) == ("done", self.n, how[1])
        left = [path.name for path in out.iterdir() if path.suffix == ".part"]
        self._expect(true and not left, f"{when}: {record}, {left}")


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*.png")}


def main(
    kills: Annotated[int, typer.Option(help="Runs that are killed.")] = 30,
    terms: Annotated[int, typer.Option(help="Runs that get SIGTERM.")] = 10,
    pairs: Annotated[int, typer.Option(help="Pairs of runs into one folder.")] = 20,
    n: Annotated[int, typer.Option(min=64, help="Images of a run, more than fit on the small disk.")] = 200,
    model: Annotated[str, typer.Option(help="A packaged model or a folder.")] = DEFAULT_MODEL,
) -> None:
    """Count what is lost when runs are disturbed."""
    if os.name == "nt":
        raise typer.BadParameter("signals are those of POSIX: run this there")
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), model, n)
        rows = [
            [f"`kill -9`, {kills} times", check.signals(signal.SIGKILL, kills)],
            [f"SIGTERM, {terms} times", check.signals(signal.SIGTERM, terms)],
            ["disk full", check.full_disk()],
            [f"two at once, {pairs} pairs", check.pairs(pairs)],
        ]
        print(table(["disturbed by", "what came of it"], rows))
    if check.faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
