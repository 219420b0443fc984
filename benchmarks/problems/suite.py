"""The problems of the bench of image quality, by name, all made of one set of real images with classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.adapters.locality import Local
from fewstep.bench.classifier import Classifier, load_classifier
from fewstep.bench.images import resized, to_unit_range
from fewstep.bench.metrics import Moments
from fewstep.schedule import EDM

from .base import Problem, batches, pooled
from .empirical import Empirical
from .mixtures import ClassGaussians, fitted
from .network import Reclocked

if TYPE_CHECKING:
    from fewstep.adapters import EDMModel

__all__ = ["PROBLEMS", "SPLITS", "Entry", "Source", "Split"]

FEW_CLASSES = 2  # of the Gaussians at full size, whose eigenvectors take a while
IDEAL_IMAGES = 2000
LOCAL_IMAGES = 500
STATISTICS_IMAGES = 1000  # that DPM-Solver-v3 is told the statistics of
# Samples that Fréchet distances are of. Of a quarter as many, sampling noise is most of nearly every distance.
MANY, MANY_GAUSSIAN, MANY_NETWORK = 2048, 1024, 512
OWN_IMAGES, OWN_SEED = 2048, 1_000_000  # of the network, solved from noise of its own, that distances are to
EXACT, DATA, OWN = "exact", "images", "network"  # what distances are to: the distribution, training images, its own
CLASSIFIED_IMAGES = 1000  # of each class, for the moments of a classifier's features
# Of UniPC-3. Twice as many change the solution by less than a twentieth of the best solver's error after 20 calls:
# tests/benchmarks/test_problems.py. On the network they change it by 0.00001, at guidance 7.5 by 0.0001.
STEPS = 128
OWN_STEPS = 32  # of the samples that are the network's own distribution; an RMSE of 0.0007 to those of STEPS


class Split(NamedTuple):
    """Which classes and seeds are for developing solvers, and which for reporting on them."""

    classes: tuple[int, ...]
    first_seed: int


SPLITS: Mapping[str, Split] = {
    "dev": Split((0, 2, 4, 6, 8), 0),
    "report": Split((1, 3, 5, 7, 9), 10_000),
}


@dataclass(frozen=True, eq=False)
class Source:
    """Images (N, 3, H, H) of uint8 with classes (N,), the split that is used of them, and a trained model.

    Problems are at the full side H, or at half of it.
    """

    pixels: Tensor
    labels: Tensor
    split: Split
    load_model: Callable[[], EDMModel]

    @cached_property
    def model(self) -> EDMModel:
        return self.load_model()

    @property
    def half(self) -> int:
        return self.pixels.shape[-1] // 2

    def of_class(self, label: int, side: int, count: int | None = None) -> Tensor:
        """The first `count` images of a class, (n, 3, side, side) in [-1, 1], float64; all if not given."""
        chosen = self.pixels[self.labels == label][:count]
        if len(chosen) < (count or 2):
            raise ValueError(f"class {label} needs {count or 2} images; the data hold {len(chosen)}: use a larger set")
        return resized(to_unit_range(chosen).double(), side)

    def some(self, count: int, side: int | None = None) -> Tensor:
        """`count` images, as many of each class of the split, at half their side if not told another."""
        each = count // len(self.split.classes)
        return torch.cat([self.of_class(label, side or self.half, each) for label in self.split.classes])


def class_gaussians(name: str, source: Source) -> Problem:
    classes = source.split.classes[:FEW_CLASSES]
    mixture = fitted([source.of_class(label, source.pixels.shape[-1]) for label in classes])
    return Problem(
        name,
        mixture.shape,
        source.split.first_seed,
        lambda seeds: ClassGaussians(mixture, tuple(seed % len(classes) for seed in seeds)),
        steps=None,
        many=MANY_GAUSSIAN,
        targets={EXACT: lambda: pooled_moments(mixture.moments(), mixture.shape)},
    )


def mixture_of_classes(name: str, source: Source) -> Problem:
    mixture = fitted([source.of_class(label, source.half) for label in source.split.classes])
    return Problem(
        name,
        mixture.shape,
        source.split.first_seed,
        lambda seeds: mixture,
        STEPS,
        many=MANY,
        targets={EXACT: lambda: pooled_moments(mixture.moments(), mixture.shape)},
        images=source.some(STATISTICS_IMAGES),
    )


def empirical(name: str, source: Source, blur: float) -> Problem:
    law = Empirical(source.some(IDEAL_IMAGES), blur)
    shape = tuple(law.images.shape[1:])
    return Problem(
        name,
        shape,
        source.split.first_seed,
        lambda seeds: law,
        STEPS,
        samples=256,  # runs that end at another image than the solution decide the error: few a cell
        many=MANY,
        targets={EXACT: lambda: pooled_moments(law.moments(), shape)},
        nearest=None if blur else law.nearest,
    )


def local(name: str, source: Source) -> Problem:
    images = source.some(LOCAL_IMAGES)
    population = torch.cat([source.of_class(label, source.half) for label in source.split.classes])
    law = Local.of(images, population)
    return Problem(name, tuple(images.shape[1:]), source.split.first_seed, lambda seeds: law, STEPS, samples=32)


def network(name: str, source: Source, guidance: float | None) -> Problem:
    """The trained model, without classes if `guidance` is None; then with distances between sets, which take long."""
    model, classes = source.model, source.split.classes
    seen = partial(classified, load_classifier())

    def law(seeds: Sequence[int]) -> Reclocked:
        if guidance is None:
            return Reclocked(model, model.schedule)
        return Reclocked(model.conditioned([classes[seed % len(classes)] for seed in seeds], guidance), model.schedule)

    def images() -> Moments:
        side = model.shape[-1]
        known = range(len(model.classes))
        return Moments.of(torch.cat([seen(source.of_class(label, side, CLASSIFIED_IMAGES)) for label in known]))

    def own() -> Moments:
        seeds = range(OWN_SEED, OWN_SEED + OWN_IMAGES)
        nearly = dataclasses.replace(problem, steps=OWN_STEPS)
        return Moments.of(torch.cat([seen(nearly.solution(EDM(), part)) for part in batches(seeds)]))

    problem = Problem(
        name,
        model.shape,
        source.split.first_seed,
        law,
        STEPS,
        samples=16,
        many=MANY_NETWORK,
        dtype=torch.float32,
        features=seen,
        targets={DATA: images, OWN: own} if guidance is None else {},
        images=source.some(STATISTICS_IMAGES, model.shape[-1]).float() if guidance is None else None,
        fingerprint=model.fingerprint,
    )
    return problem


def pooled_moments(pixels: Moments, shape: tuple[int, ...]) -> Moments:
    """Of `pooled` features, from those of all pixels of images of `shape`."""
    return pixels.through(lambda flat: pooled(flat.reshape(-1, *shape)))


@torch.no_grad()
def classified(classifier: Classifier, images: Tensor, batch: int = 250) -> Tensor:
    """The classifier's features of images (N, 3, h, h), enlarged to its 32 pixels by repeating theirs."""
    enlarge = partial(torch.nn.functional.interpolate, size=(32, 32), mode="nearest")
    return torch.cat([classifier.features(enlarge(part.float())) for part in images.split(batch)])


class Entry(NamedTuple):
    """A problem's maker, and the group of problems that it is reported with."""

    group: Literal["exact", "unguided", "guided"]
    make: Callable[[str, Source], Problem]


PROBLEMS: Mapping[str, Entry] = {
    "gaussian": Entry("exact", class_gaussians),
    "mixture": Entry("exact", mixture_of_classes),
    "ideal": Entry("exact", partial(empirical, blur=0.0)),
    "blurred-0.05": Entry("exact", partial(empirical, blur=0.05)),
    "blurred-0.15": Entry("exact", partial(empirical, blur=0.15)),
    "blurred-0.3": Entry("exact", partial(empirical, blur=0.3)),
    "local": Entry("exact", local),
    "model": Entry("unguided", partial(network, guidance=None)),
    "guided-1.5": Entry("guided", partial(network, guidance=1.5)),
    "guided-4": Entry("guided", partial(network, guidance=4.0)),
    "guided-7.5": Entry("guided", partial(network, guidance=7.5)),
}
