"""A generator from images without training: an analytical denoiser that is local because pixels are correlated.

The best denoiser of a finite set of images is known, and makes nothing but these images again. This one looks at each
pixel by the pixels that it depends on alone, and so puts together parts of many.

Lukoianov, Yuan, Solomon & Sitzmann, Locality in Image Diffusion Models Emerges from Data Statistics (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guidance import guided
from ..prediction import Denoiser, each
from ..schedule import EDM, Node, Schedule
from ..statistics import fingerprint
from .labels import integer_labels

__all__ = ["THRESHOLD", "Local", "local"]

THRESHOLD = 0.1
MASKS = 64  # of 8 MB each at 32 x 32
ELEMENTS = 2**22  # of pixels times images at once: 32 MB
TINY = 1e-300  # in place of 0 where it divides: the nearest image then has all the weight, and 0 / 0 is 0
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class Local:
    """A posterior mean over `images` (n, C, H, W) at each pixel q, with distances that count the pixels q depends on:

        D(x)_q = sum_i w_iq x_iq,   w_q = softmax(-sum_p m_qp |x_p - alpha x_ip|^2 / (2 sigma^2))

    From the paper is the form, with the mask m taken from the sensitivity of the best linear denoiser, the Wiener
    filter W = alpha^2 S (alpha^2 S + sigma^2)^-1 of data of covariance S; its code takes m_qp = 1 where |W_qp / W_qq|
    reaches 0.02, else 0. Ours are three changes. That mask jumps as sigma falls, and an ODE that jumps has no rate of
    convergence: we take the smooth u^2 / (u^2 + threshold^2) of u = |W_qp| / |W_qq|. It begins at 0.1 because with
    hundreds of images in place of a whole data set 0.02 still ends at one of them. And a pixel's channels stay
    together, |W_qp| being the Frobenius norm of a block of C x C: a ninth of the work, no colours of different images.

    `covariance` is S, (CHW, CHW), of as many images as there are. With threshold 0 every pixel counts: the exact
    denoiser of `images`, whose samples are these images. Otherwise it is the exact one where each pixel depends on all
    others, or on none, alike, and in general not a distribution's.

    Itself the denoiser on the clock of `schedule`, and of a class, `conditioned`, if there are `labels` (n,). float64.
    Cost of a call: (HW)^2 n multiplications a sample, one sample after another, so that memory is that of the images,
    the masks and a few times 32 MB, and a sample the same in any batch; once a level, (CHW)^3 for the mask.
    """

    images: Tensor
    covariance: Tensor
    schedule: Schedule = field(default_factory=EDM)
    threshold: float = THRESHOLD
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Tensor, population: Tensor) -> Local:
        """Over `images`, with the covariance of a larger `population` of their kind."""
        return cls(images, torch.cov(population.double().flatten(1).T))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept of calls, which is made again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        held = torch.nn.Module()
        held.register_buffer("images", self.images)
        held.register_buffer("covariance", self.covariance)
        held.register_buffer("labels", self.labels)
        return fingerprint(held, threshold=self.threshold)

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.denoised(x, each(self.schedule.node, t))

    def conditioned(self, labels: Sequence[int] | Tensor | int, guidance: float | Tensor = 1.0) -> Denoiser:
        """The denoiser of the images of the classes `labels`, one a sample or one for all; guidance 1 adds nothing."""
        if self.labels is None:
            raise ValueError("these images have no classes: give labels=, or call the denoiser as it is")
        wanted = integer_labels(labels)
        if wanted is None or not bool(torch.isin(wanted, self.labels.to(wanted.device)).all()):
            raise ValueError(f"labels must be those of some images; got {labels!r}")
        one = Conditioned(self, wanted)
        return one if not isinstance(guidance, Tensor) and guidance == 1 else guided(one, self, guidance)

    def denoised(self, x: Tensor, node: Node | list[Node], labels: Tensor | None = None) -> Tensor:
        """The mean at x = alpha x_0 + sigma noise, both (B, C, H, W); finite also at alpha = 0 and at sigma = 0.

        `node` is one for all, or a list of one a sample.
        """
        if x.shape[1:] != self.images.shape[1:]:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.shape))}) as the images; got {tuple(x.shape)}")
        nodes = node if isinstance(node, list) else [node] * len(x)
        wanted = None if labels is None else labels.to("cpu").expand(len(x)).tolist()
        samples = x.to(self.images.device).double().flatten(2).permute(0, 2, 1)
        means = [
            self._mean(sample, self._mask(*at[1:]), at, self._pixels(None if wanted is None else wanted[i]))
            for i, (sample, at) in enumerate(zip(samples, nodes, strict=True))
        ]
        return torch.stack(means).permute(0, 2, 1).reshape(x.shape).to(x)

    def _mean(self, sample: Tensor, mask: Tensor, node: Node, points: Tensor) -> Tensor:
        """Of one sample (HW, C) over `points` (HW, n, C), in parts: sums relative to the least distance so far."""
        least = torch.full_like(sample[:, :1], torch.inf)
        total, mean = torch.zeros_like(least), torch.zeros_like(sample)
        for part in points.split(max(1, ELEMENTS // len(sample)), dim=1):
            # |x_p|^2 is the same for all images.
            distances = node.alpha**2 * part.square().sum(2) - 2 * node.alpha * (part @ sample[..., None])[..., 0]
            masked = mask @ distances
            before, least = least, torch.minimum(least, masked.amin(1, keepdim=True))
            weights = ((least - masked) / (2 * max(node.sigma**2, TINY))).exp()
            fade = ((least - before) / (2 * max(node.sigma**2, TINY))).exp()
            total = total * fade + weights.sum(1, keepdim=True)
            mean = mean * fade + (weights[:, None] @ part)[:, 0]
        return mean / total

    @cached_property
    def _pixels(self) -> Callable[[int | None], Tensor]:
        """(HW, n, C), of all images or of those of a label."""
        pixels = self.images.double().flatten(2).permute(2, 0, 1).contiguous()

        @lru_cache(None)
        def of(label: int | None) -> Tensor:
            return pixels if label is None or self.labels is None else pixels[:, self.labels == label]

        return of

    @cached_property
    def _mask(self) -> Callable[[float, float], Tensor]:
        channels, size = self.images.shape[1], self.images[0, 0].numel()
        if not self.threshold:
            return lambda alpha, sigma: torch.ones(size, size, dtype=torch.float64, device=self.images.device)
        values, vectors = torch.linalg.eigh(self.covariance.double())
        values = values.clamp_min(0)

        @lru_cache(MASKS)
        def mask(alpha: float, sigma: float) -> Tensor:
            # W / alpha^2, whose ratios are W's and stay finite at alpha = 0.
            gains = values / (alpha**2 * values + sigma**2).clamp_min(TINY)
            blocks = ((vectors * gains) @ vectors.T).reshape(channels, size, channels, size).square().sum((0, 2))
            shares: Tensor = blocks / (blocks + self.threshold**2 * blocks.diagonal()[:, None]).clamp_min(TINY)
            return shares

        return mask


@dataclass(frozen=True, eq=False)
class Conditioned:
    """What `Local.conditioned` returns, without guidance."""

    model: Local
    labels: Tensor

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.labels.ndim and self.labels.shape != x.shape[:1]:
            raise ValueError(f"labels must be one for all or one a sample, {len(x)}; got {tuple(self.labels.shape)}")
        return self.model.denoised(x, each(self.schedule.node, t), self.labels)


def local(
    images: Tensor | str | Path,
    *,
    labels: Sequence[int] | Tensor | None = None,
    classes: Sequence[str] = (),
    schedule: Schedule | None = None,
    threshold: float = THRESHOLD,
) -> Local:
    """A denoiser of `images`, (n, C, H, W) in [-1, 1], or a folder of image files of one size, as a model.

    Args:
        labels: the class of each image, for `conditioned`; `classes` names them.
        schedule: EDM() with the images' standard deviation, if not given.
        threshold: how little the answer at a pixel must depend on another, as a share, not to look there. With 0 it
            looks everywhere, and samples are the images themselves.

    Hundreds of images, thousands better: a covariance of few makes each pixel depend on all. 32 x 32 at most, about;
    see `Local` for the cost. ValueError for images that are not so, or not finite.
    """
    given = images if isinstance(images, Tensor) else read(Path(images))
    if given.ndim != 4 or len(given) < 2 or not given.is_floating_point() or not bool(given.isfinite().all()):
        raise ValueError(
            f"images must be finite floating point (n, C, H, W), n of 2 or more; got {given.dtype} {tuple(given.shape)}"
        )
    most = float(given.abs().max())
    if most > 1:
        raise ValueError(
            f"images must lie in [-1, 1]; got {most:g}: divide bytes by 127.5 and take 1 off, clamp what is resized, "
            "or build Local with a schedule of your own"
        )
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1); got {threshold!r}")
    of = None if labels is None else torch.as_tensor(labels)
    if of is not None and (of.is_floating_point() or of.shape != given.shape[:1]):
        raise ValueError(f"labels must be integers, one an image, {len(given)}; got {of.dtype} {tuple(of.shape)}")
    covariance = torch.cov(given.double().flatten(1).T)
    if schedule is None and bool((given == given[:1]).all()):
        raise ValueError("images must not all be the same, which tells no schedule: give others too, or schedule=")
    made = schedule or EDM(data_std=float(covariance.diagonal().mean().sqrt()))
    return Local(given, covariance, made, threshold, of, tuple(classes))


def read(folder: Path) -> Tensor:
    """The image files of a folder, in the order of their names, as (n, 3, H, W) in [-1, 1]."""
    from .. import pictures

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found = [torch.tensor(pictures.read(path)) for path in paths]
    if not found or any(each.shape != found[0].shape for each in found):
        sizes = ", ".join(sorted({f"{each.shape[1]} x {each.shape[0]}" for each in found})) or "none"
        raise ValueError(f"{folder} must hold images ({', '.join(SUFFIXES)}) of one size; got {sizes}")
    return torch.stack(found).permute(0, 3, 1, 2).float() / 127.5 - 1
