"""Which images are to be restored, and which the networks of benchmarks/restore may see."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.bench.classifier import Classifier
from fewstep.bench.images import load_images, to_unit_range

__all__ = ["held_out"]

FIRST = 1000  # images of the file, of which they are


@torch.no_grad()
def held_out(data: str, classifier: Classifier, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`count` images in [-1, 1], their labels, and all others as they are stored, uint8.

    The packaged model was trained on the fifth of each class that a classifier is surest of. These are the first of
    which another one is less sure than of half of its class: they are hardly among that fifth.
    """
    stored, labels = load_images(data)
    if labels is None:
        raise ValueError(f"the images of {data} have no classes: give others by --data")
    first = labels[:FIRST]
    sure = classifier(to_unit_range(stored[:FIRST])).log_softmax(1).gather(1, first[:, None])[:, 0]
    middle = torch.stack([sure[first == label].median() for label in range(int(labels.max()) + 1)])
    chosen = (sure < middle[first]).nonzero()[:count, 0]
    kept = torch.ones(len(stored), dtype=torch.bool)
    kept[chosen] = False
    return to_unit_range(stored[chosen]), labels[chosen], stored[kept]
