"""Inner products of predictions, per sample or per sample and channel: how EVODiff measures.

Everything here is reproducible: on CPU a sample's numbers do not depend, to the last bit, on how many
others share its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Inner", "floored", "sigmoid"]

SPLIT_SUM = 32768  # elements; at::internal::GRAIN_SIZE


class Inner:
    """The inner product of tensors of one shape: over all dimensions but the batch and the channels.

    Per sample if `channel_dim` is None, or if nothing else would be left, as for (B, N). Results keep the
    reduced dimensions as 1, so that they multiply what they were measured on.
    """

    def __init__(self, like: Tensor, channel_dim: int | None):
        shape, ndim = like.shape, like.ndim
        if channel_dim is not None and not -ndim <= channel_dim < ndim:
            raise ValueError(f"channel_dim={channel_dim} is not a dimension of a tensor of shape {tuple(shape)}")
        channels = 0 if channel_dim is None else channel_dim % ndim
        self.dims = tuple(d for d in range(1, ndim) if d != channels) or tuple(range(1, ndim))
        # A sum with a single result is split over threads if it is long, one with several is not, and adds up
        # in another order: a long single one is taken twice.
        single = shape[0] == 1 and (channels in (0, *self.dims) or shape[channels] == 1)
        self.twice = single and like.numel() >= SPLIT_SUM

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        """<u, v>."""
        product = u * v
        if self.twice:
            return product.expand(2, *product.shape[1:]).sum(self.dims, True)[:1]
        return product.sum(self.dims, True)

    def project(self, u: Tensor, v: Tensor) -> Tensor:
        """<u, v> / <v, v>, how much of v is in u; 0 where v is 0."""
        return self.dot(u, v).div_(floored(self.dot(v, v)))


def floored(norm: Tensor) -> Tensor:
    """A squared norm that can be divided by: 0 / 0 becomes 0, no signal and so no projection."""
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


def sigmoid(z: Tensor) -> Tensor:
    """1 / (1 + e^-z). Taken twice side by side, which keeps torch from its vector code: the last bit of that
    and of the code for what is left over differ, so that an element would depend on its place in the tensor."""
    return z.unsqueeze(-1).expand(*z.shape, 2).sigmoid().select(-1, 0)
