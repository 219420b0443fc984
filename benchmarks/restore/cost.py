"""The page docs/restore-cost.md: what restoring costs beside plain sampling, and what a preconditioner would save."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
import typer
from torch import Tensor

import fewstep as fs
from benchmarks.command import Out, packaged, say, write
from benchmarks.memory import held, peak
from fewstep.adapters import load_model
from fewstep.bench.markdown import table
from fewstep.prediction import Denoiser
from fewstep.restore import Linear, Spectrum, deblurring, inpainting, posterior, red_diff, superresolution
from fewstep.restore.measurement import linearised
from fewstep.restore.posterior import ITERATIONS, TOLERANCE, Posterior, Solve
from fewstep.restore.residuals import conjugate_residuals

__all__ = ["KINDS", "LIMIT", "Cost", "compare", "iterations", "operators", "page", "runs"]

CALLS = 10
BATCHES = {1: 9, 8: 5}  # and how often each is run, one after the other, for its time
PROCESSES = 9  # of each, for its memory: of a few MiB single ones are off by a fifth
LIMIT = 1.2  # of plain sampling's
NOISE = 0.05
KEPT = 48  # samples of the model whose spectrum is taken
PROBED = 2  # images whose iterations are counted
SPREAD = 1.5  # pixels of blur
SMALL = (3, 8, 8)  # images that warm up

PLAIN, PIGDM = "plain sampling", "PiGDM"
KINDS = {"proximal": "none", "proximal, a spectrum": "none", "RED-Diff": "none", PIGDM: "one a call"}  # gradients


def operators(shape: tuple[int, ...]) -> dict[str, Linear]:
    mask = torch.ones(shape[1:])
    mask[:, shape[2] // 2 :] = 0
    return {
        "half of the image": inpainting(mask, shape),
        "4x downsampling": superresolution(4, shape),
        f"blur of {SPREAD} pixels": deblurring(SPREAD, shape),
    }


def _measured(operator: Any, clean: Tensor) -> Tensor:
    y: Tensor = operator.A(clean)
    return y + NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))


Run = Callable[[int], object]  # of a number of calls


def runs(model: Denoiser, schedule: fs.schedule.Schedule, images: Tensor, batch: int) -> dict[tuple[str, str], Run]:
    """By kind and operator, of measurements of the first `batch` images, all of which give the spectrum."""
    clean, spectrum = images[:batch], Spectrum.of(images)
    noise, seeds = fs.unit_noise(range(batch), images.shape[1:]), range(batch)
    found: dict[tuple[str, str], Run] = {(PLAIN, ""): lambda nfe: fs.sample(model, noise, nfe=nfe, schedule=schedule)}
    for name, operator in operators(tuple(images.shape[1:])).items():
        y = _measured(operator, clean)
        given = partial(posterior, model, operator, y, noise=NOISE, schedule=schedule)
        known = given(method="proximal", spectrum=spectrum)
        found |= {
            ("proximal", name): partial(_sampled, given(method="proximal"), noise, schedule),
            ("proximal, a spectrum", name): partial(_sampled, known, noise, schedule),
            ("RED-Diff", name): partial(_optimised, model, operator, y, schedule, seeds),
        }
    found[PIGDM, name] = partial(_sampled, given(method="pigdm"), noise, schedule)
    return found


def _sampled(denoiser: Denoiser, noise: Tensor, schedule: fs.schedule.Schedule, nfe: int) -> object:
    return fs.sample(denoiser, noise, nfe=nfe, schedule=schedule)


def _optimised(
    model: Denoiser, operator: Linear, y: Tensor, schedule: fs.schedule.Schedule, seeds: range, nfe: int
) -> object:
    return red_diff(model, operator, y, noise=NOISE, schedule=schedule, seeds=seeds, nfe=nfe)


def measured(images: Tensor, batch: int) -> list[tuple[str, str, list[float], list[int]]]:
    """Of each kind and operator, seconds of this process's CPU, run in turn; and bytes beyond the model and the data
    that copies of this process hold at most, each for one run."""
    torch.set_num_threads(1)
    model = load_model(batch=batch)
    every = runs(model, model.schedule, images, batch)
    # What is imported at first is no image's memory: of small images, and no network.
    small = torch.randn(2, *SMALL, generator=torch.Generator().manual_seed(0))
    for run in runs(lambda x, t: x / 2, fs.EDM(), small, 1).values():
        run(2)
    bytes_: dict[tuple[str, str], list[int]] = {key: [] for key in every}
    for number in range(PROCESSES):
        for key, run in every.items():
            say(f"batch {batch}, memory {number + 1}, {' '.join(key)}")
            bytes_[key].append(_forked(run))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in every}
    for number in range(1 + BATCHES[batch]):
        say(f"batch {batch}, time {number}")
        for key, run in every.items():
            started = time.process_time()
            run(CALLS if number else 2)  # the first is to warm up
            if number:
                seconds[key].append(time.process_time() - started)
    return [(*key, seconds[key], bytes_[key]) for key in every]


def _forked(run: Run) -> int:
    """The most that a copy of this process holds more while it runs."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        before = held()
        most = peak(lambda: run(4)) - before  # what is kept from call to call is kept after four
        os.write(writer, str(most).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        found = int(told.read())
    os.waitpid(child, 0)
    return found


class Cost(NamedTuple):
    """Of a run: seconds, bytes, and their shares of plain sampling's."""

    seconds: float
    bytes: float
    of_seconds: float
    of_bytes: float


def compare(file: Path, batch: int) -> dict[tuple[str, str], Cost]:
    """Medians: of times, of their ratios to plain sampling's in the same turn; of bytes."""
    command = [sys.executable, "-m", "benchmarks.restore.cost", "--images", str(file), "--batch", str(batch)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (_, _, base, kept), *_ = every = json.loads(told.splitlines()[-1])
    plain = statistics.median(kept)
    return {
        (kind, name): Cost(
            statistics.median(seconds),
            statistics.median(bytes_),
            statistics.median(one / other for one, other in zip(seconds, base, strict=True)),
            statistics.median(bytes_) / plain,
        )
        for kind, name, seconds, bytes_ in every
    }


def iterations(
    denoiser: Any, operator: Any, y: Tensor, noise: float, spectrum: Spectrum, x: Tensor
) -> tuple[list[Solve], list[Solve]]:
    """Of each call of a run by moment matching, as it is, and with the system of the spectrum as a preconditioner."""
    plain: list[Solve] = []
    better: list[Solve] = []
    given = cast(Posterior, posterior(denoiser, operator, y, noise=noise, callback=plain.append))

    def both(x: Tensor, t: float) -> Tensor:
        better.append(_preconditioned(given, x, t, spectrum))
        return given(x, t)

    fs.sample(both, x, nfe=CALLS, schedule=given.schedule)
    return plain, better


def _preconditioned(given: Posterior, x: Tensor, t: float, spectrum: Spectrum) -> Solve:
    """M P^-1 w = b, u = P^-1 w, P = A V A^T + noise^2 I with the spectrum's V: the residual is that of M u = b."""
    node = given.schedule.node(t)
    denoised, pull = torch.func.vjp(lambda z: given.denoiser(z, t), x)  # type: ignore[misc]
    at, covariance = linearised(given.operator, denoised), partial(spectrum.conditional, node=node)

    def system(covariance: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        return at.forward(covariance(at.adjoint(u))) + given.noise**2 * u

    def known(b: Tensor) -> Tensor:
        # Ten times as exact, without calls of the network: what it leaves is no part of what is measured.
        return conjugate_residuals(lambda u: system(covariance, u), b, TOLERANCE / 10, 5 * ITERATIONS).u

    def of_model(u: Tensor) -> Tensor:
        return system(lambda v: pull(v)[0] * (node.sigma**2 / node.alpha), u)

    found = conjugate_residuals(lambda w: of_model(known(w)), given.y - at.measured, TOLERANCE, ITERATIONS)
    return Solve(node, 1 + int(found.iterations.max()), found.iterations, found.residual)


def _preconditioner(samples: Tensor) -> str:
    model, spectrum, clean = load_model(batch=PROBED), Spectrum.of(samples[PROBED:]), samples[:PROBED]
    rows = []
    for name, operator in operators(model.shape).items():
        say(f"iterations, {name}")
        noise = fs.unit_noise(range(PROBED), model.shape)
        for label, solves in zip(
            ("none", "the spectrum's"),
            iterations(model, operator, _measured(operator, clean), NOISE, spectrum, noise),
            strict=True,
        ):
            each = [float(solve.iterations.double().mean()) for solve in solves]
            left = [f"{float(solve.residual.mean()):.2f}" for solve in solves]
            rows.append(
                [name, label, f"{statistics.mean(each):.1f}", " ".join(f"{n:.0f}" for n in each), " ".join(left)]
            )
    return table(["", "preconditioner", "iterations a call", "of each call", "left of the residual"], rows)


def _costs(costs: dict[tuple[str, str], Cost]) -> str:
    rows = [
        [
            ", ".join(filter(None, (kind, name))),
            KINDS.get(kind, "none"),
            f"{one.seconds:.2f}",
            f"{one.of_seconds:.2f}",
            f"{one.bytes / 2**20:.1f}",
            f"{one.of_bytes:.2f}",
        ]
        for (kind, name), one in costs.items()
    ]
    return table(["", "gradients", "seconds", "of plain", "MiB", "of plain"], rows)


def _verdict(batch: int, costs: dict[tuple[str, str], Cost]) -> str:
    """Of what takes no gradients."""
    free = {key: one for key, one in costs.items() if KINDS.get(key[0]) == "none"}
    over = [
        f"{', '.join(key)} takes {one.of_seconds:.2f} of the time and {one.of_bytes:.2f} of the memory"
        for key, one in free.items()
        if max(round(one.of_seconds, 2), round(one.of_bytes, 2)) > LIMIT
    ]
    start = f"- Batch {batch}: without gradients, at most {LIMIT} of plain sampling's time and memory"
    return f"{start}, but {'; '.join(over)}." if over else f"{start}, all of them."


def page() -> str:
    model = packaged()
    samples = fs.sample(model, fs.unit_noise(range(KEPT + PROBED), model.shape), nfe=CALLS)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "images.pt"
        torch.save(samples[PROBED:], file)
        found = {batch: compare(file, batch) for batch in BATCHES}
    return PAGE.format(
        calls=CALLS,
        rounds=" or ".join(map(str, BATCHES.values())),
        processes=PROCESSES,
        noise=NOISE,
        verdicts="\n".join(textwrap.fill(_verdict(*one), 120, subsequent_indent="  ") for one in found.items()),
        tables="\n".join(f"### Batch {batch}\n\n{_costs(costs)}" for batch, costs in found.items()),
        iterations=_preconditioner(samples),
        kept=KEPT,
        probed=PROBED,
        most=ITERATIONS,
    )


PAGE = """# What restoring costs

For people who [restore](restore.md) with a large network, and ask what a method adds to its calls. You get CPU time
and memory beside plain sampling's, in one run. Where memory is short, use a method without gradients.

Written by `make restore-cost`: the packaged network, {calls} calls, measurements of its samples with noise {noise}.
Seconds are one thread's CPU time; all are run in turn, {rounds} times, and "of plain" is the median of what each takes
over plain sampling in its turn. MiB are what a process holds at most beyond imports, model and data; medians of
{processes}. The spectrum is that of {kept} samples.

{verdicts}

What is not the network is {most} iterations of conjugate residuals a call at most, eleven operations on tensors of
the size of y in each, and the operator and the spectrum. It is the same beside any network: this one takes 15 ms for
an image, on which an operation of 3 microseconds shows.

{tables}
Gradients go through the whole network and keep what training keeps: PiGDM takes one a call. Each iteration of moment
matching is one more, for all images of the batch: it stops when the last of them has come to its tolerance, or after
{most}.

## A preconditioner would not help

Moment matching solves a system with the network's Jacobian in each call. Its likeness with the spectrum of {kept}
samples in the place of the Jacobian costs no call, and would be a preconditioner. Counted in the same run of moment
matching, {probed} images, both at each call from the same state:

{iterations}
It does not halve the iterations, so it is not in the library: what takes them, at high noise, is not the data's
spectrum but the network's Jacobian, which is not that of any covariance there. On data of exactly that spectrum it
would take one iteration, where `method="proximal"` with it takes no gradient.
"""


def main(
    out: Out = None,
    images: Annotated[Path | None, typer.Option(hidden=True)] = None,
    batch: Annotated[int, typer.Option(hidden=True)] = 1,
) -> None:
    """Measure what restoring costs beside plain sampling, and write docs/restore-cost.md."""
    if images is None:
        write(out, page)
    else:
        print(json.dumps(measured(torch.load(images, weights_only=True), batch)))


if __name__ == "__main__":
    typer.run(main)
