"""What interruption and company cost a bench: ten kills in a row, and two processes beside one.

    python -m benchmarks.interruption

Prints what it finds. The throughput of two processes says something on two idle cores only.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from fewstep import EDM

KILLS = 10
N, BATCH = 480, 8
HEAVY = 24  # matrix products a call: some milliseconds, so that starting up is little of a run
BENCH = (
    "bench", "run", "--model", "benchmarks.interruption:gaussian", "--solvers", "ddim,dpmpp-2m", "--nfe", "3,5",
    f"--n={N}", f"--batch={BATCH}", "--converged", "12", "--metrics", "rmse,gain",
)  # fmt: skip


class Gaussian:
    """The denoiser of pixels N(0, 1/4), which takes its time. Each image is worked on alone."""

    shape = (3, 32, 32)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        for image in x:
            for _ in range(HEAVY // len(x)):
                torch.mm(image.reshape(96, 32), image.reshape(32, 96))
            torch.mm(*[torch.ones(320, 320)] * 2)
        return x * (0.25 / (0.25 + t * t))


def gaussian() -> tuple[Gaussian, EDM]:
    return Gaussian(), EDM()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = timed(folder / "whole", 1)
        print(f"one process: {whole:.1f} s")
        total = len(files(folder / "whole"))
        for kill in range(1, KILLS + 1):
            found = killed(folder / "killed", total * kill // (KILLS + 1))
            print(f"kill {kill}: {found} of {total} files")
        timed(folder / "killed", 1)
        print(
            "killed ten times, and whole:", "equal" if images(folder / "killed") == images(folder / "whole") else "NOT"
        )
        two = timed(folder / "two", 2)
        print("two processes, and one:", "equal" if images(folder / "two") == images(folder / "whole") else "NOT")
        print(f"two processes: {two:.1f} s; ratio of throughputs, of drawing alone, {drawing(folder):.2f}")


def killed(out: Path, after: int) -> int:
    """Run on until so many files are there, kill at a random moment after that, and count the files."""
    process = subprocess.Popen(command(out, 1), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(files(out)) < after and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return len(files(out))


def files(out: Path) -> list[Path]:
    return list(out.rglob("*.npz"))


def command(out: Path, processes: int) -> list[str]:
    launch = (
        [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    )
    return [sys.executable, "-m", *launch, "fewstep", *BENCH, "--out", str(out)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, ["", *sys.path]))}


def timed(out: Path, processes: int) -> float:
    started = time.perf_counter()
    subprocess.run(command(out, processes), env=environment(), check=True, capture_output=True)
    return time.perf_counter() - started


def images(out: Path) -> list[str]:
    return [row["images"] for row in json.loads((out / "rows.json").read_text())["rows"]]


def drawing(folder: Path) -> float:
    """From the first file that was written to the last."""
    spans = []
    for name in ("whole", "two"):
        written = [path.stat().st_mtime for path in files(folder / name)]
        spans.append(max(written) - min(written))
    return spans[0] / spans[1]


if __name__ == "__main__":
    main()
