"""NCSN++ and DDPM++ of Song et al., Score-Based Generative Modeling through SDEs (2021), as score_sde_pytorch trained
them on continuous times: one class there, `ncsnpp`, with blocks of BigGAN's kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import silu

from .parts import Norm, attend, doubled, halved, kernel, sin_cos, waves

__all__ = ["NCSNpp", "NCSNppConfig"]


@dataclass(frozen=True)
class NCSNppConfig:
    """The keys of a configuration's `model` and `data`, of the same names; the defaults are DDPM++'s on CIFAR-10."""

    image_size: int = 32
    num_channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    fir: bool = False
    fir_kernel: tuple[int, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    resblock_type: str = "biggan"
    embedding_type: str = "positional"
    scale_by_sigma: bool = False
    centered: bool = True
    num_scales: int = 1000

    CHOICES = {  # noqa: RUF012, a constant of the class
        "progressive": ("none", "output_skip"),
        "progressive_input": ("none", "input_skip", "residual"),
        "progressive_combine": ("sum",),
        "resblock_type": ("biggan",),
        "embedding_type": ("positional", "fourier"),
    }

    @property
    def layers(self) -> int:
        return len(self.ch_mult) * self.num_res_blocks

    @property
    def taps(self) -> tuple[int, ...]:
        return self.fir_kernel if self.fir else (1, 1)


def norm(channels: int) -> Norm:
    return Norm(channels, min(channels // 4, 32), 1e-6)


class Fourier(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels), requires_grad=False)

    def forward(self, level: Tensor) -> Tensor:
        return sin_cos(level.float()[:, None] * (2 * math.pi * self.W.float()))


class NIN(nn.Module):
    """A linear map of the channels, its matrix from inputs to outputs."""

    def __init__(self, channels: int):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.W.T[:, :, None, None], self.b)


class Attention(nn.Module):
    def __init__(self, config: NCSNppConfig, channels: int):
        super().__init__()
        self.scale = math.sqrt(0.5) if config.skip_rescale else 1.0
        self.GroupNorm_0 = norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.GroupNorm_0(x)
        found = attend(*(each(inner).flatten(2)[:, None] for each in (self.NIN_0, self.NIN_1, self.NIN_2)))
        answer: Tensor = (x + self.NIN_3(found.reshape(x.shape))) * self.scale
        return answer


class Block(nn.Module):
    def __init__(self, config: NCSNppConfig, channels: int, out: int, resample: str = ""):
        super().__init__()
        self.resample, self.taps = resample, config.taps
        self.scale = math.sqrt(0.5) if config.skip_rescale else 1.0
        self.GroupNorm_0 = norm(channels)
        self.Conv_0 = nn.Conv2d(channels, out, 3, padding=1)
        self.Dense_0 = nn.Linear(4 * config.nf, out)
        self.GroupNorm_1 = norm(out)
        self.Conv_1 = nn.Conv2d(out, out, 3, padding=1)
        self.Conv_2 = nn.Conv2d(channels, out, 1) if channels != out or resample else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        inner = silu(self.GroupNorm_0(x))
        if self.resample:
            low_pass, change = kernel(self.taps), doubled if self.resample == "up" else halved
            inner, x = change(inner, low_pass), change(x, low_pass)
        inner = self.Conv_0(inner) + self.Dense_0(silu(level))[:, :, None, None]
        inner = self.Conv_1(silu(self.GroupNorm_1(inner)))
        answer: Tensor = (self.Conv_2(x) + inner) * self.scale
        return answer


class Fused(nn.Module):
    """A convolution and, after it, halving; its parameters are below `Conv2d_0`, or without a filter `Conv_0`."""

    def __init__(self, config: NCSNppConfig, channels: int, out: int):
        super().__init__()
        self.taps, self.fir = config.taps, config.fir
        if config.fir:
            self.Conv2d_0 = nn.Conv2d(channels, out, 3)
        else:
            self.Conv_0 = nn.Conv2d(channels, out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            strided: Tensor = self.Conv_0(functional.pad(x, (0, 1, 0, 1)))
            return strided
        pad = 1 + (len(self.taps) - 1) // 2
        return halved(self.Conv2d_0(functional.pad(x, (pad,) * 4)), kernel(self.taps), padding=0)


class Combine(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        answer: Tensor = self.Conv_0(x) + other
        return answer


class NCSNpp(nn.Module):
    """x (B, C, H, W), level (B,) -> (B, C, H, W): the level is 999 t, or with Fourier features sigma."""

    sigmas: Tensor

    def __init__(self, config: NCSNppConfig):
        super().__init__()
        self.config = config
        self.register_buffer("sigmas", torch.zeros(config.num_scales))  # of training on discrete levels
        # A list without names, in the order in which `forward` takes from it.
        self.all_modules = nn.ModuleList(self._modules_in_order())

    def _modules_in_order(self) -> Iterator[nn.Module]:
        config = self.config
        nf, colours, steps = config.nf, config.num_channels, len(config.ch_mult)
        fourier = config.embedding_type == "fourier"
        if fourier:
            yield Fourier(nf)
        yield nn.Linear(2 * nf if fourier else nf, 4 * nf)
        yield nn.Linear(4 * nf, 4 * nf)
        yield nn.Conv2d(colours, nf, 3, padding=1)
        out, pyramid, skips = nf, colours, [nf]
        for level, mult in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                yield Block(config, out, nf * mult)
                out = nf * mult
                if config.image_size >> level in config.attn_resolutions:
                    yield Attention(config, out)
                skips.append(out)
            if level < steps - 1:
                yield Block(config, out, out, "down")
                if config.progressive_input == "input_skip":
                    yield Combine(pyramid, out)
                elif config.progressive_input == "residual":
                    yield Fused(config, pyramid, out)
                    pyramid = out
                skips.append(out)
        yield Block(config, out, out)
        yield Attention(config, out)
        yield Block(config, out, out)
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                yield Block(config, out + skips.pop(), nf * mult)
                out = nf * mult
            if config.image_size >> level in config.attn_resolutions:
                yield Attention(config, out)
            if config.progressive == "output_skip":
                yield norm(out)
                yield nn.Conv2d(out, colours, 3, padding=1)
            if level:
                yield Block(config, out, out, "up")
        if config.progressive == "none":
            yield norm(out)
            yield nn.Conv2d(out, colours, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        config, parts = self.config, iter(self.all_modules)
        low_pass = kernel(config.taps)

        def take() -> Any:
            return next(parts)

        told = take()(level.log()) if config.embedding_type == "fourier" else waves(level, config.nf, ends=True)
        told = take()(told.to(x.dtype))
        told = take()(silu(told))
        if not config.centered:
            x = 2 * x - 1
        pyramid, kept = x, [take()(x)]
        for step, _ in enumerate(config.ch_mult):
            side = config.image_size >> step
            for _ in range(config.num_res_blocks):
                inner = take()(kept[-1], told)
                kept.append(take()(inner) if side in config.attn_resolutions else inner)
            if step < len(config.ch_mult) - 1:
                inner = take()(kept[-1], told)
                if config.progressive_input == "input_skip":
                    pyramid = halved(pyramid, low_pass)
                    inner = take()(pyramid, inner)
                elif config.progressive_input == "residual":
                    pyramid = inner = (take()(pyramid) + inner) * (math.sqrt(0.5) if config.skip_rescale else 1.0)
                kept.append(inner)
        inner = take()(kept[-1], told)
        inner = take()(inner)
        inner = take()(inner, told)
        image: Any = None
        for step in reversed(range(len(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                inner = take()(torch.cat([inner, kept.pop()], dim=1), told)
            if config.image_size >> step in config.attn_resolutions:
                inner = take()(inner)
            if config.progressive == "output_skip":
                larger = 0 if image is None else doubled(image, low_pass)
                normed = silu(take()(inner))
                image = larger + take()(normed)
            if step:
                inner = take()(inner, told)
        if config.progressive == "none":
            image = silu(take()(inner))
            image = take()(image)
        answer: Tensor = image / level.to(x.dtype)[:, None, None, None] if config.scale_by_sigma else image
        return answer
