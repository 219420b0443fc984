"""The networks of Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022):
`SongUNet`, with which they retrained DDPM++ and NCSN++, and `DhariwalUNet`, ADM's architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import silu

from .parts import Norm, attend, doubled, halved, kernel, scaled_silu, sin_cos, waves

__all__ = ["DHARIWAL", "EDMUNet", "UNetConfig"]

# What DhariwalUNet takes where it is not told.
DHARIWAL = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]}

HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class UNetConfig:
    """The arguments of the published classes, of the same names; the defaults are SongUNet's as DDPM++."""

    model_type: str
    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    CHOICES = {  # noqa: RUF012
        "model_type": ("SongUNet", "DhariwalUNet"),
        "embedding_type": ("positional", "fourier"),
        "encoder_type": ("standard", "skip", "residual"),
        "decoder_type": ("standard", "skip"),
    }

    @property
    def layers(self) -> int:
        return len(self.channel_mult) * self.num_blocks


class Conv(nn.Module):
    """A convolution, or none if `size` is 0, of an image that is resampled before it, or, `fused`, halved after it."""

    resample_filter: Tensor | None

    def __init__(
        self,
        channels: int,
        out: int,
        size: int,
        resample: str = "",
        taps: tuple[int, ...] = (1, 1),
        fused: bool = False,
    ):
        super().__init__()
        self.channels, self.out, self.resample, self.fused = channels, out, resample, fused
        self.weight = nn.Parameter(torch.empty(out, channels, size, size)) if size else None
        self.bias = nn.Parameter(torch.empty(out)) if size else None
        self.register_buffer("resample_filter", kernel(taps) if resample else None)

    def forward(self, x: Tensor) -> Tensor:
        low_pass, pad = self.resample_filter, 0
        if low_pass is not None and self.fused:  # the convolution sees as much of the border as the filter will
            pad = (low_pass.shape[-1] - 1) // 2
        elif low_pass is not None:
            x = (doubled if self.resample == "up" else halved)(x, low_pass)
        if self.weight is None or self.bias is None:
            return x
        x = functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2 + pad)
        return halved(x, low_pass, padding=0) if low_pass is not None and self.fused else x


class Block(nn.Module):
    """Two convolutions with the noise level between them, a skip, and attention."""

    def __init__(self, config: UNetConfig, channels: int, out: int, resample: str = "", attention: bool = False):
        super().__init__()
        song = config.model_type == "SongUNet"
        taps = config.resample_filter if song else (1, 1)
        self.channels, self.out = channels, out
        self.scale = HALF if song else 1.0
        self.heads = 0 if not attention else 1 if song else out // 64

        def norm(width: int) -> Norm:
            return Norm(width, min(32, width // 4), 1e-6 if song else 1e-5)

        self.norm0 = norm(channels)
        self.conv0 = Conv(channels, out, 3, resample, taps)
        self.affine = nn.Linear(config.model_channels * config.channel_mult_emb, out if song else 2 * out)
        self.norm1 = norm(out)
        self.conv1 = Conv(out, out, 3)
        self.skip = None
        if out != channels or resample:
            self.skip = Conv(channels, out, 1 if song or out != channels else 0, resample, taps)
        if attention:
            self.norm2 = norm(out)
            self.qkv = Conv(out, 3 * out, 1)
            self.proj = Conv(out, out, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        inner = self.conv0(silu(self.norm0(x)))
        told = self.affine(level)[:, :, None, None]
        if told.shape[1] == self.out:
            inner = silu(self.norm1(inner + told))
        else:
            inner = scaled_silu(self.norm1(inner), *told.chunk(2, dim=1))
        x = (self.conv1(inner) + (x if self.skip is None else self.skip(x))) * self.scale
        if not self.heads:
            return x
        # Heads outermost, then channels, and each channel's query, key and value together.
        found = attend(*self.qkv(self.norm2(x)).reshape(len(x), self.heads, self.out // self.heads, 3, -1).unbind(3))
        answer: Tensor = (self.proj(found.reshape(x.shape)) + x) * self.scale
        return answer


class EDMUNet(nn.Module):
    """F(x, level, one-hot labels) of either class; `level` is c_noise, (B,)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        song = self.song = config.model_type == "SongUNet"
        width = config.model_channels
        wide = width * config.channel_mult_emb
        noise = width * config.channel_mult_noise if song else width
        self.noise = noise
        self.map_noise = nn.Module()
        if song and config.embedding_type == "fourier":
            self.map_noise.register_buffer("freqs", torch.empty(noise // 2))
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, noise if song else wide, bias=song)
        if config.augment_dim:  # of training alone
            self.map_augment = nn.Linear(config.augment_dim, noise, bias=False)
        self.map_layer0 = nn.Linear(noise, wide)
        self.map_layer1 = nn.Linear(wide, wide)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        last = self._encode()
        self._decode(last)

    def _encode(self) -> int:
        config, song = self.config, self.song
        out = aux = config.in_channels
        for level, mult in enumerate(config.channel_mult):
            side = config.img_resolution >> level
            at = f"{side}x{side}"
            if level == 0:
                first = config.model_channels * (1 if song else mult)
                self.enc[f"{at}_conv"] = Conv(out, first, 3)
                out = first
            else:
                self.enc[f"{at}_down"] = Block(config, out, out, "down")
                if song and config.encoder_type == "skip":
                    self.enc[f"{at}_aux_down"] = Conv(aux, aux, 0, "down", config.resample_filter)
                    self.enc[f"{at}_aux_skip"] = Conv(aux, out, 1)
                elif song and config.encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Conv(aux, out, 3, "down", config.resample_filter, fused=True)
                    aux = out
            for i in range(config.num_blocks):
                each = config.model_channels * mult
                self.enc[f"{at}_block{i}"] = Block(config, out, each, attention=side in config.attn_resolutions)
                out = each
        return out

    def _decode(self, out: int) -> None:
        config, song = self.config, self.song
        skips = [int(block.out) for name, block in self.enc.items() if "aux" not in name]  # type: ignore[arg-type]
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            side = config.img_resolution >> level
            at, deepest = f"{side}x{side}", level == len(config.channel_mult) - 1
            if deepest:
                self.dec[f"{at}_in0"] = Block(config, out, out, attention=True)
                self.dec[f"{at}_in1"] = Block(config, out, out)
            else:
                self.dec[f"{at}_up"] = Block(config, out, out, "up")
            for i in range(config.num_blocks + 1):
                each = config.model_channels * mult
                here = side in config.attn_resolutions and (i == config.num_blocks or not song)
                self.dec[f"{at}_block{i}"] = Block(config, out + skips.pop(), each, attention=here)
                out = each
            if song and (config.decoder_type == "skip" or level == 0):
                if config.decoder_type == "skip" and not deepest:
                    self.dec[f"{at}_aux_up"] = Conv(
                        config.out_channels, config.out_channels, 0, "up", config.resample_filter
                    )
                self.dec[f"{at}_aux_norm"] = Norm(out, min(32, out // 4), 1e-6)
                self.dec[f"{at}_aux_conv"] = Conv(out, config.out_channels, 3)
        if not song:
            self.out_norm = Norm(out, min(32, out // 4))
            self.out_conv = Conv(out, config.out_channels, 3)

    def _level(self, level: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        if self.song and self.config.embedding_type == "fourier":
            freqs: Any = self.map_noise.freqs
            told = sin_cos(level.float()[:, None] * (2 * math.pi * freqs.float())).to(dtype)
        else:
            told = waves(level, self.noise, ends=self.song).to(dtype)
        if not self.song:  # cosines first
            told = told.roll(self.noise // 2, 1)
        if self.song and self.config.label_dim:
            told = told + self.map_label(labels.to(dtype) * math.sqrt(self.config.label_dim))
        told = self.map_layer1(silu(self.map_layer0(told)))
        if not self.song and self.config.label_dim:
            told = told + self.map_label(labels.to(dtype))
        return silu(told)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        """x (B, C, H, W), level (B,), labels one-hot or, for no class, zeros (B, label_dim) -> (B, out, H, W)."""
        told = self._level(level, labels, x.dtype)
        skips: list[Tensor] = []
        aux = x
        for name, block in self.enc.items():
            if "aux_down" in name:
                aux = block(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + block(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + block(aux)) * HALF
            else:
                x = block(x, told) if isinstance(block, Block) else block(x)
                skips.append(x)
        image: Any = None
        for name, block in self.dec.items():
            if "aux_up" in name:
                image = block(image)
            elif "aux_norm" in name:
                normed = silu(block(x))
            elif "aux_conv" in name:
                image = block(normed) if image is None else image + block(normed)
            else:
                if x.shape[1] != block.channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, told)
        if not self.song:
            image = self.out_conv(silu(self.out_norm(x)))
        answer: Tensor = image
        return answer
