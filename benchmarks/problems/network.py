"""A trained network as a problem: its denoiser under noise of any schedule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.prediction import Denoiser
from fewstep.schedule import EDM, Node

__all__ = ["Reclocked"]


@dataclass(frozen=True)
class Reclocked:
    """`denoiser`, trained on the levels of `trained`, at x = alpha x_0 + sigma noise: D(x / alpha; sigma / alpha).

    A noisier level is answered as the noisiest one, of x shrunk to it, which is finite at alpha = 0; a cleaner level as
    the cleanest, of x as it is.
    """

    denoiser: Denoiser
    trained: EDM

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        noisiest = self.trained.sigma_max
        if node.nsr > noisiest:
            return self.denoiser(x * (noisiest / node.sigma), noisiest)
        return self.denoiser(x / node.alpha, max(node.nsr, self.trained.sigma_min))
