"""A mixture of Gaussians over small latents, in two classes: the exact model inside ComfyUI."""

from __future__ import annotations

from .mixtures import GaussianMixture, gaussian

__all__ = ["SHAPE", "latent_laws"]

SHAPE = (4, 8, 8)
CLASSES, COMPONENTS, SEED = 2, 3, 7


def latent_laws() -> list[GaussianMixture]:
    """Of all data, and of each class: standard deviations of 0.03 to 1 about means of 0.5, 0.62 in all."""
    whole = gaussian(SHAPE, CLASSES * COMPONENTS, SEED)
    parts = [slice(k, k + COMPONENTS) for k in range(0, CLASSES * COMPONENTS, COMPONENTS)]
    return [whole, *(_part(whole, part) for part in parts)]


def _part(whole: GaussianMixture, part: slice) -> GaussianMixture:
    weights = whole.weights[part] / whole.weights[part].sum()
    return GaussianMixture(weights, whole.means[part], whole.variances[part], whole.vectors[part], whole.shape)
