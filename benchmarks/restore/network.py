"""The page docs/restore-images.md: held-out images restored by the packaged model, by this library's methods and
others'.

What is drawn is kept in a folder, by sampler, task and part of the images, and an interrupted measurement goes on. The
page is of the parts that every sampler has done. To measure, an environment needs deepinv 0.5.0 and azula 0.11.1.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from fewstep.adapters.unet2d import EDMModel
from fewstep.bench.classifier import load_classifier
from fewstep.bench.images import load_images, to_unit_range
from fewstep.bench.markdown import table
from fewstep.bench.metrics import psnr
from fewstep.files import check_file, read_npz, write_atomically
from fewstep.models import CIFAR10
from fewstep.pictures import headed, pixels, png
from fewstep.prediction import Denoiser
from fewstep.restore import Method, Spectrum, posterior, red_diff
from fewstep.sampling import sample, unit_noise
from fewstep.solvers import DDIM, EVODiff, Solver
from fewstep.store import Store

from ..command import Data, Out, packaged, say
from .peers import NOISE, PEERS, TASKS, observed, physics

__all__ = ["MAIN", "OURS", "Drawn", "Figures", "Ours", "draw", "figures", "held_out", "psnr"]

FOLDER = Path(tempfile.gettempdir()) / "fewstep-restore"
HELD_OUT, SPLIT_SEED = 5000, 0  # training/configs/cifar32_classifier.toml: the classifier has not seen these
PARTS, PART = 4, 8  # of images
SPECTRUM_SEEDS = range(100_000, 100_064)
SAMPLES = 4  # of each image
T_90 = {3: 2.3534}  # Student's, of the 90 % interval, by degrees of freedom
ITERATIONS = 10
LONG = "deepinv DPS, 1000"  # an hour: drawn at the end, of the first part, and not waited for
ONCE = (LONG, "deepinv DPS, 100", "RED-Diff, 25", "RED-Diff, 100")  # one of each image: a long run, or no samples
MAIN = (
    "moment, EVODiff, 10", "moment of 3, EVODiff, 10", "moment, DDIM, 10", "proximal with spectrum, EVODiff, 10",
    "proximal with spectrum, DDIM, 10", "deepinv DiffPIR, 100", "deepinv DDRM, 100", "azula MMPS, 64",
)  # fmt: skip

DEFAULT, SURE = "moment, EVODiff, 10", "moment, DDIM, 10"
SHOWN = 2  # images of the picture
PICTURE = {  # of a sampler the sample of a number
    "moment": (DEFAULT, 0), "again": (DEFAULT, 1), "spectrum": ("proximal with spectrum, EVODiff, 10", 0),
    "DiffPIR": ("deepinv DiffPIR, 100", 0),
    "DDRM": ("deepinv DDRM, 100", 0), "MMPS": ("azula MMPS, 64", 0), "DPS": ("deepinv DPS, 100", 0),
}  # fmt: skip
Sampler = Callable[..., Tensor]  # physics, y (B, *) and a seed to images


@dataclass(frozen=True)
class Ours:
    """One of our methods with a solver and its calls; `method` None is RED-Diff."""

    method: Method | None
    solver: Solver
    nfe: int
    spectrum: bool = False
    iterations: int = ITERATIONS

    def __call__(self, denoiser: Denoiser, operator: Any, y: Tensor, seed: int, spectrum: Spectrum) -> Tensor:
        seeds = range(1000 * seed, 1000 * seed + len(y))
        if self.method is None:
            # As usual; the library's own start is the mean of white images given y.
            start = operator.A_adjoint(y)
            return red_diff(denoiser, operator, y, noise=NOISE, seeds=seeds, nfe=self.nfe, start=start)
        restoring = posterior(
            denoiser, operator, y, noise=NOISE, method=self.method,
            spectrum=spectrum if self.spectrum else None, iterations=self.iterations,
        )  # fmt: skip
        noise = unit_noise(seeds, operator.A_adjoint(y).shape[1:])
        return sample(restoring, noise, nfe=self.nfe, solver=self.solver)


OURS: Mapping[str, Ours] = {
    "moment, EVODiff, 10": Ours("moment", EVODiff(), 10),
    "moment of 3, EVODiff, 10": Ours("moment", EVODiff(), 10, iterations=3),
    "moment, DDIM, 10": Ours("moment", DDIM(), 10),
    "proximal with spectrum, EVODiff, 10": Ours("proximal", EVODiff(), 10, spectrum=True),
    "proximal with spectrum, EVODiff, 25": Ours("proximal", EVODiff(), 25, spectrum=True),
    "proximal with spectrum, DDIM, 10": Ours("proximal", DDIM(), 10, spectrum=True),
    "proximal, EVODiff, 10": Ours("proximal", EVODiff(), 10),
    "proximal, DDIM, 10": Ours("proximal", DDIM(), 10),
    "pigdm, EVODiff, 10": Ours("pigdm", EVODiff(), 10),
    "pigdm, DDIM, 10": Ours("pigdm", DDIM(), 10),
    "dps, EVODiff, 10": Ours("dps", EVODiff(), 10),
    "dps, DDIM, 10": Ours("dps", DDIM(), 10),
    "RED-Diff, 25": Ours(None, EVODiff(), 25),
    "RED-Diff, 100": Ours(None, EVODiff(), 100),
}


class Drawn(NamedTuple):
    """Samples (S, B, C, H, W); calls and gradients a sample; CPU seconds a sample and image."""

    samples: Tensor
    calls: float
    gradients: float
    seconds: float


def held_out(data: str, part: int) -> Tensor:
    """Images that the packaged classifier has not seen; the denoiser may have seen up to one in five."""
    pixels, _ = load_images(data)
    kept = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))[-HELD_OUT:]
    return to_unit_range(pixels[kept[part * PART : (part + 1) * PART]])


def draw(model: EDMModel, sampler: Sampler, operator: Any, y: Tensor, samples: int) -> Drawn:
    """`samples` of each image, from seeds 1, 2 ..., as deepinv ignores seed 0."""
    calls = gradients = 0

    class Counted(torch.autograd.Function):
        """The identity, which counts the times that a gradient passes it."""

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, *passed: Any) -> Any:
            nonlocal gradients
            gradients += 1
            return passed[0]

    def denoiser(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += 1
        return Counted.apply(model(x, t))  # type: ignore[no-any-return, no-untyped-call]

    denoiser.schedule = model.schedule  # type: ignore[attr-defined]
    started = time.process_time()
    # Copies, as deepinv's DDRM writes into what it is given.
    drawn = torch.stack([sampler(denoiser, operator, y.clone(), seed).detach() for seed in range(1, samples + 1)])
    seconds = time.process_time() - started
    return Drawn(drawn, calls / samples, gradients / samples, seconds / samples / len(y))


def wanted(parts: int) -> Iterator[tuple[int, str, str]]:
    """Part, sampler and task: all samplers on the first part, the main ones on the others."""
    for part in range(parts):
        yield from product([part], MAIN if part else (name for name in (*OURS, *PEERS) if name != LONG), TASKS)
    yield from product([0], [LONG], TASKS)


def stored(store: Store, part: int, sampler: str, task: str) -> Drawn:
    found = read_npz(store.folder / name_of(part, sampler, task))
    return Drawn(torch.from_numpy(found["samples"]), *(float(found[field]) for field in Drawn._fields[1:]))


def name_of(part: int, sampler: str, task: str) -> str:
    return f"{part}, {sampler}, {task}.npz"


def fill(store: Store, data: str, parts: int) -> None:
    model = packaged()
    spectrum = None
    for part, name, task in wanted(parts):
        if store.holds(name_of(part, name, task)):
            continue
        if spectrum is None:
            spectrum = Spectrum.of(sample(model, unit_noise(SPECTRUM_SEEDS, model.shape), nfe=8))
        truth, operator = held_out(data, part), physics(task, model.shape)

        sampler = partial(OURS[name], spectrum=spectrum) if name in OURS else PEERS[name]
        y = observed(operator, task, truth, part * PART)
        drawn = draw(model, sampler, operator, y, 1 if name in ONCE else SAMPLES)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field: np.asarray(value) for field, value in drawn._asdict().items()})  # type: ignore[arg-type]
        store.write({name_of(part, name, task): buffer.getvalue()})
        say(f"part {part}, {name}, {task}: {psnr(drawn.samples, truth).mean():.2f} dB, {drawn.seconds:.2f} s")


class Figures(NamedTuple):
    """Of each image (B,). psnr: of a sample, in dB; psnr_of_mean: of the mean of its samples; distance: of a sample's
    features to the truth's; left: what a sample leaves of y, as a share of the variance of its noise; within: the share
    of pixels in the samples' 90 % interval, NaN of a single sample."""

    psnr: Tensor
    psnr_of_mean: Tensor
    distance: Tensor
    left: Tensor
    within: Tensor


def figures(samples: Tensor, truth: Tensor, y: Tensor, operator: Any, features: Callable[[Tensor], Tensor]) -> Figures:
    """Of samples (S, B, C, H, W)."""
    count, mean = len(samples), samples.mean(0)
    with torch.no_grad():
        apart = torch.stack([features(each.clamp(-1, 1)) for each in samples]) - features(truth)
    # deepinv's inpainting keeps the pixels that are not seen, as zeros.
    seen = (operator.A(torch.ones_like(truth)) > 1e-3).to(y)
    left = torch.stack([((y - operator.A(each)) * seen).square().flatten(1).sum(1) for each in samples]).mean(0)
    within = torch.full((len(truth),), torch.nan)
    if count > 1:
        reach = T_90[count - 1] * (1 + 1 / count) ** 0.5 * samples.std(0)
        within = ((truth - mean).abs() <= reach).float().flatten(1).mean(1)
    return Figures(
        psnr(samples, truth).mean(0), psnr(mean, truth), apart.norm(dim=-1).mean(0),
        left / seen.flatten(1).sum(1) / NOISE**2, within,
    )  # fmt: skip


def table_of(store: Store, data: str, names: Sequence[str], parts: Sequence[int]) -> str:
    """A row for each task and sampler."""
    classifier, shape, rows = load_classifier(), packaged().shape, []
    truths = [held_out(data, part) for part in parts]
    for task in TASKS:
        operator = physics(task, shape)
        for name in names:
            found, costs = [], []
            for part, truth in zip(parts, truths, strict=True):
                drawn = stored(store, part, name, task)
                y = observed(operator, task, truth, part * PART)
                found.append(figures(drawn.samples, truth, y, operator, classifier.features))
                costs.append([drawn.calls, drawn.gradients, drawn.seconds])
            each = Figures(*map(torch.cat, zip(*found, strict=True)))
            calls, gradients, seconds = np.mean(costs, axis=0)
            within = "" if bool(each.within.isnan().any()) else f"{each.within.mean():.1%}"
            rows.append([
                task, name, f"{each.psnr.mean():.2f}", f"{each.psnr_of_mean.mean():.2f}", f"{each.distance.mean():.2f}",
                f"{each.left.mean().sqrt():.2f}", within, f"{calls:.0f}", f"{gradients:.0f}", f"{seconds:.2f}",
            ])  # fmt: skip
    head = ["", "", "PSNR", "of the mean", "features", "data", "in 90 %", "calls", "gradients", "seconds"]
    return table(head, rows)


def differences(store: Store, data: str, parts: Sequence[int]) -> str:
    """A row for each task and peer: how much more PSNR ours have, image by image, with its standard error."""
    rows = []
    truths = torch.cat([held_out(data, part) for part in parts])
    for task, peer in product(TASKS, [name for name in PEERS if name in MAIN]):
        row = [task, peer]
        for mine in (DEFAULT, SURE):
            ours, theirs = (
                torch.cat([stored(store, part, name, task).samples for part in parts], 1) for name in (mine, peer)
            )
            of_samples = (psnr(ours, truths) - psnr(theirs, truths)).mean(0)
            of_means = psnr(ours.mean(0), truths) - psnr(theirs.mean(0), truths)
            row += [f"{more.mean():+.2f} ± {more.std() / len(more) ** 0.5:.2f}" for more in (of_samples, of_means)]
        rows.append(row)
    return table(["", "than", f"{DEFAULT}: PSNR", "of the mean", f"{SURE}: PSNR", "of the mean"], rows)


def picture(store: Store, data: str) -> bytes:
    """Two images of each task in rows; what is measured, restorations and the truth in columns."""
    truth, shape, rows = held_out(data, 0), packaged().shape, []
    for task in TASKS:
        operator = physics(task, shape)
        y = observed(operator, task, truth, 0)
        measured = y.repeat_interleave(shape[-1] // y.shape[-1], -1).repeat_interleave(shape[-1] // y.shape[-1], -2)
        for k in range(SHOWN):
            drawn = [stored(store, 0, name, task).samples[seed, k] for name, seed in PICTURE.values()]
            rows += [measured[k], *drawn, truth[k]]
    return png(headed(pixels(torch.stack(rows)), ["measured", *PICTURE, "truth"]))


def page(store: Store, data: str, parts: Sequence[int]) -> str:
    images = PART * len(parts)
    every = [name for name in (*OURS, *PEERS) if all(store.holds(name_of(0, name, task)) for task in TASKS)]
    whole = "" if len(parts) == 1 else OTHERS.format(first=PART, rows=table_of(store, data, every, [0]))
    return (
        INTRODUCTION.format(images=images, parts=PARTS * PART, samples=SAMPLES, noise=NOISE, iterations=ITERATIONS)
        + table_of(store, data, every if len(parts) == 1 else MAIN, parts)
        + DIFFERENCES
        + differences(store, data, parts)
        + READING
        + whole
    )


INTRODUCTION = """# Restoring images, measured beside deepinv and azula

For those who choose a method of [restore.md](restore.md), or between libraries: {images} held-out images of CIFAR-10,
restored by the packaged model. It is small, and made to be quick: the order of methods is what to take from here, not
the decibels. Nothing is picked. The classifier has not seen the images; the network was trained on a fifth of all, and
may have seen as many of these. Where the posterior is known, methods are compared with it itself, which is the stricter
test: [restore-exact.md](restore-exact.md).

All samplers have the same network, measurements and operators, which are deepinv's: the right half missing, means of
4 x 4 pixels, and a Gaussian blur of 1.5 pixels, with noise {noise} of pixels in [-1, 1]. Those of deepinv 0.5.0 and
azula 0.11.1 are at their defaults, but for DPS, whose 1,000 steps take longer than all others together. Moment
matching takes at most {iterations} iterations a call, or 3 where it is called *moment of 3*; a *spectrum* is that of
64 samples of the model. RED-Diff begins at A*(y).

PSNR is of a sample, in dB, and of the mean of {samples} samples of an image; *features* the distance of a sample's
features in the packaged classifier to the truth's; *data* what a sample leaves of the measurement, over the noise: 1 is
right. *In 90 %* is the share of pixels within the interval that the samples of the image say they should be in 9 times
of 10 (Student's, of {samples} samples): less is a sampler that is too sure. Calls and gradients are for a sample,
gradients each about a call and a half; seconds are of one core's time, for a sample of one image in a batch of eight.
RED-Diff is an optimum and has one, and DPS was given one.

`python -m benchmarks.restore.network --data DATA --out docs/restore-images.md`, with deepinv and azula, measures them
and draws the picture. It goes on where it was interrupted; `--parts` has more images, {parts} if it is not given.

"""
DIFFERENCES = """
How much more PSNR ours have than each of the peers, in dB, image by image, with the standard error of the mean:

"""
READING = """
**Ten calls of moment matching with EVODiff are the most even-handed of these samplers.** In a tenth of DiffPIR's
calls and a sixth of MMPS's they have the PSNR of either, within two standard errors, or more: up to 1.2 dB of DiffPIR
and 1.9 of MMPS. One cell is against them, a sample of MMPS in super-resolution by 0.5 dB, where the means are equal.
Their intervals are nearer to 90 % than those of every other library in inpainting and super-resolution, and than
MMPS's and DDRM's in deblurring; there DiffPIR's are nearer, at ten times the calls and 0.5 dB less.

**Where a sample of ours has less PSNR, it is because it varies more.** A sample of the right posterior has 3 dB less
than the posterior's mean, so a sampler gains up to 3 dB by not varying. DDRM does: in super-resolution and deblurring
it has 2.3 and 1.8 dB more, and its intervals hold 39 % and 70 % of the pixels; its code divides the noise that it draws
by the square root of 2. Of means of four it has 0.6 and 0.8 dB more, and these are real. In inpainting it leaves the
hole as it is, as its levels begin too low, at sigma = 1 in [0, 1]. DDIM in place of EVODiff is the same trade: a sample
has 0.8 to 1.2 dB more, and more than every other library's but DDRM's, its intervals hold 8 to 11 points too few, the
mean of four has up to 0.4 dB more. Who wants one image and no sample takes the mean of some, or RED-Diff.

**Calls are not all.** Moment matching takes nearly as many gradients in ten calls as MMPS in 64, and half its
seconds; with 3 iterations 40 of them, a quarter of the seconds, and as much PSNR but in deblurring. Without any
gradient, `"proximal"` with a spectrum of 64 samples is within 0.5 dB of it at a tenth of the seconds, and at a tenth
of DiffPIR's calls has more PSNR than it in inpainting and as much elsewhere. Without a spectrum it is DiffPIR in ten
calls, figures and patchwork holes alike. 25 calls of it are no better than ten.

**Not for ten calls are `"pigdm"` and `"dps"`**, ours: they leave 3 to 20 times the noise of the measurement. DPS of
deepinv does so in 100 steps. **What is short of 90 %** is not the solver's: of Gaussian data, with the exact
denoiser, the same samplers have the right variance. Here the network is small, and images are not Gaussian.

![What is measured, restorations by seven samplers, and the truth](restore-images.png)

The picture has two samples of moment matching, *moment* and *again*. Seen by eye: they continue the horizon and the
background across the hole, and put another animal, or a part of one, where the missing half was; so does *spectrum*.
DiffPIR fills the hole with something of its own, with a seam; DDRM leaves it black, and is the smoothest elsewhere,
MMPS between. From 8 x 8 pixels all but DDRM invent texture. Of the blur all make the animal and the bird, but for DPS,
which at its default weight draws images of its own that hardly heed what is measured.
"""
OTHERS = """
## All methods, on the first {first} of these images

{rows}"""


def main(
    data: Data = CIFAR10,
    folder: Annotated[Path, typer.Option(help="What is drawn; an interrupted measurement goes on.")] = FOLDER,
    parts: Annotated[int, typer.Option(min=1, help=f"Of {PART} images.")] = PARTS,
    draw_more: Annotated[bool, typer.Option("--draw/--no-draw", help="Or only write of what is drawn.")] = True,
    out: Out = None,
) -> None:
    """Restore held-out images by every sampler, this library's and others', and write the page and its picture."""
    out = out or Path("restore-images.md")
    check_file(out)
    settings = {"noise": NOISE, "samples": SAMPLES, "ours": {name: repr(each) for name, each in OURS.items()}}
    with Store(folder, settings, argument="--folder") as store:
        if draw_more:
            fill(store, data, parts)
        lacking = {
            part for part, name, task in wanted(parts) if name != LONG and not store.holds(name_of(part, name, task))
        }
        done = sorted({*range(parts)} - lacking)
        if 0 in lacking:
            raise ValueError(f"{folder} has no whole part yet: run without --no-draw")
        write_atomically(out.with_suffix(".png"), picture(store, data))
        write_atomically(out, page(store, data, done).encode())


if __name__ == "__main__":
    np.random.seed(0)  # noqa: NPY002 - deepinv's DDRM seeds it, too
    typer.run(main)
