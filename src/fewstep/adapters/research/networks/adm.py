"""The networks of Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis (2021): the U-Net, whose output is
the noise and, with learn_sigma, a variance beside it, and the classifier of noisy images, with attention pooling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import Norm, attend, doubled, halved, kernel, scaled_silu, waves

__all__ = ["ADMClassifier", "ADMConfig", "ADMUNet", "ClassifierConfig"]

# Of a published network that is not told its multipliers, by the side of its images.
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4),
}  # fmt: skip
MEAN = kernel((1, 1))


@dataclass(frozen=True)
class ADMConfig:
    """The flags of guided-diffusion's scripts, of the same names; resolutions and multipliers as lists."""

    image_size: int
    num_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...] = ()
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_classes: int = 0  # 0: not class-conditional
    learn_sigma: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    @property
    def multipliers(self) -> tuple[float, ...]:
        found = self.channel_mult or MULTIPLIERS.get(self.image_size, ())
        if not found:
            raise ValueError(f"channel_mult must be told for images of {self.image_size} pixels: give the list")
        return found

    @property
    def layers(self) -> int:
        return len(self.multipliers) * self.num_res_blocks


@dataclass(frozen=True)
class ClassifierConfig:
    """The same for the classifier, whose flags begin with classifier_ there."""

    image_size: int
    width: int = 128
    depth: int = 2
    channel_mult: tuple[float, ...] = ()
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_head_channels: int = 64
    num_classes: int = 1000
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True

    @property
    def unet(self) -> ADMConfig:
        return ADMConfig(
            image_size=self.image_size, num_channels=self.width, num_res_blocks=self.depth,
            channel_mult=self.channel_mult, num_head_channels=self.num_head_channels,
            attention_resolutions=self.attention_resolutions, use_scale_shift_norm=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
        )  # fmt: skip

    @property
    def layers(self) -> int:
        return self.unet.layers


class Resampled(nn.Module):
    """Twice or half the side, by a convolution of these names, or by none."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        if up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(doubled(x, MEAN)) if self.up else self.op(x)
        return found


class ResBlock(nn.Module):
    def __init__(self, config: ADMConfig, channels: int, out: int, resample: str = ""):
        super().__init__()
        self.resample = resample
        told = 2 * out if config.use_scale_shift_norm else out
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.num_channels, told))
        # A dropout in the middle, of training.
        self.out_layers = nn.Sequential(Norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        inner: Tensor = self.in_layers[:2](x)
        if self.resample:
            change = doubled if self.resample == "up" else halved
            inner, x = change(inner, MEAN), change(x, MEAN)
        inner = self.in_layers[2](inner)
        told = self.emb_layers(level)[:, :, None, None]
        if told.shape[1] == inner.shape[1]:
            inner = self.out_layers(inner + told)
        else:
            inner = self.out_layers[3](scaled_silu(self.out_layers[0](inner), *told.chunk(2, dim=1)))
        answer: Tensor = self.skip_connection(x) + inner
        return answer


def attended(qkv: Tensor, heads: int, split_first: bool) -> Tensor:
    """qkv (B, 3 C, N) -> (B, C, N); `split_first`: queries, keys and values outermost, else heads."""
    order = (3, heads) if split_first else (heads, 3)
    parts = qkv.reshape(len(qkv), *order, -1, qkv.shape[-1])
    queries, keys, values = parts.unbind(1 if split_first else 2)
    return attend(queries, keys, values).reshape(len(qkv), -1, qkv.shape[-1])


class Attention(nn.Module):
    def __init__(self, config: ADMConfig, channels: int, heads: int):
        super().__init__()
        each = config.num_head_channels
        self.heads = heads if each == -1 else channels // each
        self.split_first = config.use_new_attention_order
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        found = self.proj_out(attended(self.qkv(self.norm(flat)), self.heads, self.split_first))
        answer: Tensor = (flat + found).reshape(x.shape)
        return answer


class Pool(nn.Module):
    """Attention of the mean over all positions."""

    def __init__(self, side: int, channels: int, head_channels: int, out: int):
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positional_embedding
        answer: Tensor = self.c_proj(attended(self.qkv_proj(x), self.heads, split_first=True))[:, :, 0]
        return answer


class Half(nn.Module):
    """What both networks have: the way down, and the middle."""

    def __init__(self, config: ADMConfig, channels: int):
        super().__init__()
        width, blocks = config.num_channels, nn.ModuleList
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        out = self.first = int(config.multipliers[0] * width)
        self.input_blocks = blocks([blocks([nn.Conv2d(channels, out, 3, padding=1)])])
        self.skips, side = [out], config.image_size
        for level, mult in enumerate(config.multipliers):
            for _ in range(config.num_res_blocks):
                each = int(mult * width)
                layers: list[nn.Module] = [ResBlock(config, out, each)]
                out = each
                if side in config.attention_resolutions:
                    layers.append(Attention(config, out, config.num_heads))
                self.input_blocks.append(blocks(layers))
                self.skips.append(out)
            if level < len(config.multipliers) - 1:
                down = ResBlock(config, out, out, "down") if config.resblock_updown else Resampled(out, up=False)
                self.input_blocks.append(blocks([down]))
                self.skips.append(out)
                side //= 2
        middle = Attention(config, out, config.num_heads)
        self.middle_block = blocks([ResBlock(config, out, out), middle, ResBlock(config, out, out)])
        self.out_channels, self.side = out, side

    def level(self, time: Tensor) -> Tensor:
        told = waves(time, self.width, ends=False).roll(self.width // 2, 1)  # cosines first
        found: Tensor = self.time_embed(told.to(next(self.parameters()).dtype))
        return found


def through(layers: Iterable[nn.Module], x: Tensor, level: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, level) if isinstance(layer, ResBlock) else layer(x)
    return x


class ADMUNet(Half):
    """x (B, 3, H, W), time (B,), labels (B,) if it has classes -> (B, 3 or 6, H, W)."""

    def __init__(self, config: ADMConfig):
        super().__init__(config, 3)
        self.config = config
        width, out, side, blocks = config.num_channels, self.out_channels, self.side, nn.ModuleList
        if config.num_classes:
            self.label_emb = nn.Embedding(config.num_classes, 4 * width)
        heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
        skips = list(self.skips)
        self.output_blocks = blocks()
        for level, mult in reversed(list(enumerate(config.multipliers))):
            for i in range(config.num_res_blocks + 1):
                each = int(mult * width)
                layers: list[nn.Module] = [ResBlock(config, out + skips.pop(), each)]
                out = each
                if side in config.attention_resolutions:
                    layers.append(Attention(config, out, heads))
                if level and i == config.num_res_blocks:
                    layers.append(
                        ResBlock(config, out, out, "up") if config.resblock_updown else Resampled(out, up=True)
                    )
                    side *= 2
                self.output_blocks.append(blocks(layers))
        colours = 6 if config.learn_sigma else 3
        self.out = nn.Sequential(Norm(out), nn.SiLU(), nn.Conv2d(self.first, colours, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        level, kept = self.level(time), []
        if labels is not None:
            level = level + self.label_emb(labels)
        for layers in self.input_blocks:
            x = through(layers, x, level)  # type: ignore[arg-type]
            kept.append(x)
        x = through(self.middle_block, x, level)
        for layers in self.output_blocks:
            x = through(layers, torch.cat([x, kept.pop()], dim=1), level)  # type: ignore[arg-type]
        answer: Tensor = self.out(x)
        return answer


class ADMClassifier(Half):
    """x (B, 3, H, W), time (B,) -> logits (B, num_classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__(config.unet, 3)
        self.config = config
        pool = Pool(self.side, self.out_channels, config.num_head_channels, config.num_classes)
        self.out = nn.Sequential(Norm(self.out_channels), nn.SiLU(), pool)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        level = self.level(time)
        for layers in (*self.input_blocks, self.middle_block):
            x = through(layers, x, level)
        answer: Tensor = self.out(x)
        return answer

    def log_prob(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """log p(label | x) of each, (B,)."""
        logits = self(x, time).to(torch.promote_types(x.dtype, torch.float32))
        return functional.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
