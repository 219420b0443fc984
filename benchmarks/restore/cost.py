"""The page docs/restore-cost.md: what restoring costs beside plain sampling, and what a preconditioner would save."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
import typer
from torch import Tensor

import fewstep as fs
from benchmarks.command import Out, packaged, say, write
from benchmarks.memory import held, peak
from fewstep.bench.markdown import table
from fewstep.restore import Linear, Method, Spectrum, deblurring, inpainting, posterior, red_diff, superresolution
from fewstep.restore.measurement import linearised
from fewstep.restore.posterior import ITERATIONS, TOLERANCE, Posterior, Solve
from fewstep.restore.residuals import conjugate_residuals

__all__ = ["KINDS", "compare", "iterations", "one", "operators", "page"]

CALLS = 10
BATCH = 8
ROUNDS = 3
NOISE = 0.05
KEPT = 48  # samples of the model whose spectrum is taken
PROBED = 2  # images whose iterations are counted
SPREAD = 1.5  # pixels of blur

KINDS = {
    "plain sampling": "no measurement",
    "proximal": "no gradient",
    "proximal, a spectrum": "no gradient",
    "RED-Diff": "no gradient",
    "PiGDM": "one a call",
}


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


def one(kind: str) -> dict[str, float]:
    """Seconds of this process's CPU of one run, and the bytes that it held at most beyond the model and the data."""
    torch.set_num_threads(1)
    model = packaged()
    clean = torch.rand(BATCH, *model.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    spectrum = Spectrum.of(clean)
    operator = operators(model.shape)[f"blur of {SPREAD} pixels"]
    y, noise = _measured(operator, clean), fs.unit_noise(range(BATCH), model.shape)

    def run(calls: int = CALLS) -> object:
        if kind == "RED-Diff":
            return red_diff(model, operator, y, noise=NOISE, seeds=range(BATCH), nfe=calls)
        if kind == "plain sampling":
            return fs.sample(model, noise, nfe=calls)
        method: Method = "pigdm" if kind == "PiGDM" else "proximal"
        known = spectrum if kind == "proximal, a spectrum" else None
        given = posterior(model, operator, y, noise=NOISE, method=method, spectrum=known)
        return fs.sample(given, noise, nfe=calls)

    operator.A_adjoint(y[:1])  # what torch.func imports at first is no image's memory
    # By a run of its own: who watches memory takes time. What is kept from call to call is kept after four.
    before = held()
    most = peak(lambda: run(4))
    started = time.process_time()
    run()
    return {"seconds": time.process_time() - started, "bytes": most - before}


def compare(rounds: int = ROUNDS, kinds: tuple[str, ...] = tuple(KINDS)) -> dict[str, dict[str, float]]:
    """Medians over processes, each kind in turn."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind in kinds:
            say(f"round {number + 1}, {kind}")
            command = [sys.executable, "-m", "benchmarks.restore.cost", "--one", kind]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[kind].append(json.loads(told.splitlines()[-1]))
    return {
        kind: {key: statistics.median(each[key] for each in all_) for key in all_[0]} for kind, all_ in found.items()
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
    at = linearised(given.operator, denoised)

    def system(covariance: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        return at.forward(covariance(at.adjoint(u))) + given.noise**2 * u

    def known(b: Tensor) -> Tensor:
        # Ten times as exact, without calls of the network: what it leaves is no part of what is measured.
        covariance = lambda v: spectrum.conditional(v, node)  # noqa: E731
        return conjugate_residuals(lambda u: system(covariance, u), b, TOLERANCE / 10, 5 * ITERATIONS).u

    def of_model(u: Tensor) -> Tensor:
        return system(lambda v: pull(v)[0] * (node.sigma**2 / node.alpha), u)

    found = conjugate_residuals(lambda w: of_model(known(w)), given.y - at.measured, TOLERANCE, ITERATIONS)
    return Solve(node, 1 + int(found.iterations.max()), found.iterations, found.residual)


def _preconditioner() -> str:
    model = packaged()
    images = fs.sample(model, fs.unit_noise(range(KEPT + PROBED), model.shape), nfe=CALLS)
    spectrum, clean = Spectrum.of(images[PROBED:]), images[:PROBED]
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


def page() -> str:
    found = compare()
    base = found["plain sampling"]
    rows = [
        [
            kind,
            KINDS[kind],
            f"{one['seconds']:.1f}",
            f"{one['seconds'] / base['seconds']:.2f}",
            f"{one['bytes'] / 2**20:.0f}",
            f"{one['bytes'] / base['bytes']:.2f}",
        ]
        for kind, one in found.items()
    ]
    head = ["", "gradients", "seconds", "of plain", "MiB", "of plain"]
    return PAGE.format(
        calls=CALLS,
        batch=BATCH,
        rounds=ROUNDS,
        noise=NOISE,
        table=table(head, rows),
        iterations=_preconditioner(),
        kept=KEPT,
        probed=PROBED,
        most=ITERATIONS,
    )


PAGE = """# What restoring costs

For people who [restore](restore.md) with a large network, and ask what a method adds to its calls. You get CPU time
and memory beside plain sampling's, in one run. Where memory is short, use a method without gradients.

Written by `make restore-cost`: the packaged network, {batch} images, {calls} calls, a blurred measurement with noise
{noise}; seconds of one thread's CPU time and MiB held at most beyond the model; medians of {rounds} processes of each,
in turn.

{table}
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


def main(out: Out = None, one_: Annotated[str, typer.Option("--one", hidden=True)] = "") -> None:
    """Measure what restoring costs beside plain sampling, and write docs/restore-cost.md."""
    if one_:
        print(json.dumps(one(one_)))
    else:
        write(out, page)


if __name__ == "__main__":
    typer.run(main)
