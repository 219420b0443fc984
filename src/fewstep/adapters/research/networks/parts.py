"""What the architectures share: embeddings of the noise level, resampling by two, attention, group normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Norm", "attend", "doubled", "halved", "kernel", "scaled_silu", "waves"]

LONGEST = 10000.0  # of Vaswani et al. (2017), from which DDPM took the embedding


def waves(level: Tensor, channels: int, *, ends: bool) -> Tensor:
    """(sin, cos) of `level` (B,) at channels / 2 frequencies from 1 to 1 / 10000, (B, channels); `ends`: inclusive."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=level.device) / (half - 1 if ends else half)
    return sin_cos(level.float()[:, None] * torch.exp(-math.log(LONGEST) * steps))


def sin_cos(angle: Tensor) -> Tensor:
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def kernel(taps: Sequence[float]) -> Tensor:
    """The separable low-pass filter of these taps, (1, 1, k, k), of sum 1."""
    row = torch.tensor(taps, dtype=torch.float32)
    return (row[:, None] * row / row.sum() ** 2)[None, None]


def halved(x: Tensor, low_pass: Tensor, padding: int | None = None) -> Tensor:
    """Filtered and every second pixel; with taps (1, 1) the mean of 2 x 2 pixels."""
    padding = (low_pass.shape[-1] - 1) // 2 if padding is None else padding
    each = low_pass.to(x).expand(x.shape[1], -1, -1, -1)
    return functional.conv2d(x, each, stride=2, padding=padding, groups=x.shape[1])


def doubled(x: Tensor, low_pass: Tensor) -> Tensor:
    """Zeros between pixels, filtered, of the same mean; with taps (1, 1) every pixel four times."""
    each = 4 * low_pass.to(x).expand(x.shape[1], -1, -1, -1)
    return functional.conv_transpose2d(x, each, stride=2, padding=(low_pass.shape[-1] - 1) // 2, groups=x.shape[1])


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention over the last dimension, positions: (B, heads, channels, N), each -> (B, heads, channels, N)."""
    return functional.scaled_dot_product_attention(queries.mT, keys.mT, values.mT).mT


def scaled_silu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.silu(x * (1 + scale) + shift)


class Norm(nn.GroupNorm):
    """Group normalisation in float32 or better, whatever the type of x and of the weights."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5):
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)
