"""Posterior samplers of deepinv and azula on the packaged model, at their defaults, and the operators that all share.

deepinv works in [0, 1], with half our noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from fewstep.prediction import Denoiser
from fewstep.sampling import unit_noise

__all__ = ["NOISE", "PEERS", "TASKS", "observed", "physics"]

TASKS = ("inpainting, half", "super-resolution, 4×", "Gaussian deblurring")
NOISE = 0.05

FIRST, LAST = 80.0, 0.002  # sigmas that the packaged model was trained on
BLUR = 1.5  # pixels

Peer = Callable[[Denoiser, Any, Tensor, int], Tensor]  # physics, y (B, *) and a seed to images


def physics(task: str, shape: tuple[int, ...]) -> Any:
    """deepinv's operator of a task, which every sampler here is given, ours too."""
    import deepinv as dinv

    gaussian = dinv.physics.GaussianNoise(NOISE / 2)
    if task == TASKS[0]:
        mask = torch.ones(shape)
        mask[..., shape[-1] // 2 :] = 0
        return dinv.physics.Inpainting(shape, mask=mask, noise_model=gaussian)
    if task == TASKS[1]:
        return _means(shape, gaussian)
    return dinv.physics.BlurFFT(shape, filter=dinv.physics.blur.gaussian_blur(BLUR), noise_model=gaussian)


def observed(physics: Any, task: str, truth: Tensor, first: int) -> Tensor:
    """y of `truth`, image `first` and those after it; the noise is seeded by the image's number."""
    clean: Tensor = physics.A(truth)
    y = clean + NOISE * unit_noise(range(7000 + first, 7000 + first + len(truth)), clean.shape[1:])
    return y * physics.mask if task == TASKS[0] else y


def _means(shape: tuple[int, ...], noise_model: Any) -> Any:
    """The means of squares of 4 x 4 pixels, by their singular values, which DDRM needs."""
    import deepinv as dinv

    channels, height, width = shape
    draw = torch.Generator().manual_seed(0)
    columns = torch.cat([torch.ones(16, 1), torch.randn(16, 15, generator=draw)], dim=1)
    basis = torch.linalg.qr(columns.double()).Q.float().T  # the first direction is that of the mean
    basis = basis * basis[0].sum().sign()
    values = torch.zeros(1, channels, 16, height // 4, width // 4)
    values[:, :, 0] = 1 / 4

    def directions(x: Tensor) -> Tensor:
        squares = pixel_unshuffle(x, 4).unflatten(1, (channels, 16))
        return torch.einsum("dp,bcphw->bcdhw", basis, squares)

    def pixels(z: Tensor) -> Tensor:
        return pixel_shuffle(torch.einsum("dp,bcdhw->bcphw", basis, z).flatten(1, 2), 4)

    return dinv.physics.DecomposablePhysics(
        U=lambda z: z[:, :, 0],
        U_adjoint=lambda y: torch.cat([y[:, :, None], y.new_zeros(len(y), channels, 15, *y.shape[2:])], dim=2),
        V=pixels,
        V_adjoint=directions,
        mask=values,
        img_size=shape,
        noise_model=noise_model,
    )


def _in_unit_interval(denoiser: Denoiser) -> Any:
    """As deepinv's denoisers are: images in [0, 1], sigma in their units, a number or a tensor of equal ones."""

    class Unit(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            level = 2 * float(torch.as_tensor(sigma).flatten()[0])
            return (denoiser(2 * x - 1, min(max(level, LAST), FIRST)) + 1) / 2

    return Unit()


def _unit(physics: Any, y: Tensor) -> Tensor:
    """A(2 z - 1) + e as A(z) + e / 2."""
    ones = torch.ones_like(physics.A_adjoint(y))
    found: Tensor = (y + physics.A(ones)) / 2
    return found


def _dps(denoiser: Denoiser, physics: Any, y: Tensor, seed: int, steps: int = 1000) -> Tensor:
    import deepinv as dinv

    solver = dinv.sampling.DPS(_in_unit_interval(denoiser), num_steps=steps, dtype=torch.float32)
    found: Tensor = solver(_unit(physics, y), physics, seed=seed).float()
    return 2 * found - 1


def _ddrm(denoiser: Denoiser, physics: Any, y: Tensor, seed: int) -> Tensor:
    import deepinv as dinv

    # Its levels begin at 1, far below the model's; so do those of its authors for images in [0, 1].
    found: Tensor = dinv.sampling.DDRM(_in_unit_interval(denoiser))(_unit(physics, y), physics, seed=seed)
    return 2 * found - 1


def _diffpir(denoiser: Denoiser, physics: Any, y: Tensor, seed: int) -> Tensor:
    import deepinv as dinv

    solver = dinv.sampling.DiffPIR(_in_unit_interval(denoiser), dinv.optim.data_fidelity.L2(), sigma=NOISE / 2)
    found: Tensor = solver(_unit(physics, y), physics, seed=seed)
    return 2 * found - 1


def _mmps(denoiser: Denoiser, physics: Any, y: Tensor, seed: int) -> Tensor:
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    torch.manual_seed(seed)
    start = torch.randn_like(physics.A_adjoint(y)).flatten(1)
    shape = physics.A_adjoint(y).shape[1:]

    class Flat(Base):  # type: ignore[misc]
        """Its inner products are over the last dimension: everything flat."""

        schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            level = min(max(float(sigma / alpha), LAST), FIRST)
            x = (x_t / alpha).reshape(-1, *shape)
            return DiracPosterior(mean=denoiser(x, level).flatten(1))

    guided = MMPSDenoiser(
        Flat(), y.flatten(1), lambda x: physics.A(x.reshape(-1, *shape)).flatten(1), IsotropicCovariance(NOISE**2)
    )
    sampler = DDIMSampler(guided, silent=True)
    found: Tensor = sampler(start).reshape(-1, *shape)
    return found


PEERS: Mapping[str, Peer] = {
    "deepinv DiffPIR, 100": _diffpir,
    "deepinv DDRM, 100": _ddrm,
    "azula MMPS, 64": _mmps,
    "deepinv DPS, 100": partial(_dps, steps=100),
    "deepinv DPS, 1000": _dps,
}
