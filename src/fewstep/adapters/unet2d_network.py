"""diffusers' `UNet2DModel` as small models use it, without diffusers: its import takes longer than sampling.

The tensors have the names and the order that they have there, so that weights serve both. `covers` says whether a
configuration is one that this file knows: blocks with and without attention, additive or scaled time embedding, class
labels. The answers are diffusers', bit for bit on CPU in float32. Source of the architecture: Ho et al. (2020),
appendix B, with the scaled embedding of Dhariwal & Nichol (2021); of its names and details: diffusers 0.42,
models/unets/unet_2d.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention, silu

__all__ = ["UNet2D", "covers"]

ATTENTION = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}
# Keys of a configuration that may only say one of these; a missing one says the first.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu",), "add_attention": (True, False), "attn_norm_num_groups": (None,), "class_embed_type": (None,),
    "center_input_sample": (False,), "downsample_padding": (1,), "downsample_type": ("conv",), "dropout": (0, 0.0),
    "mid_block_scale_factor": (1, 1.0), "mid_block_type": ("UNetMidBlock2D",), "num_train_timesteps": (None,),
    "time_embedding_dim": (None,), "time_embedding_type": ("positional",), "upsample_type": ("conv",),
}  # fmt: skip
FREE = {
    "attention_head_dim", "block_out_channels", "down_block_types", "flip_sin_to_cos", "freq_shift", "in_channels",
    "layers_per_block", "norm_eps", "norm_num_groups", "num_class_embeds", "out_channels", "resnet_time_scale_shift",
    "sample_size", "up_block_types",
}  # fmt: skip
KINDS: Mapping[str, tuple[type, ...]] = {
    "attention_head_dim": (int, type(None)), "flip_sin_to_cos": (bool,), "freq_shift": (int, float),
    "norm_eps": (int, float), "norm_num_groups": (int,),
}  # fmt: skip
SLOWEST = 10_000  # the longest period of the time embedding, in units of 2 pi


def covers(config: Mapping[str, Any]) -> bool:
    """Whether `UNet2D(config)` is the network that diffusers would make of it."""
    keys = {key for key in config if not key.startswith("_")}
    if not FREE <= keys <= FREE | FIXED.keys():
        return False
    widths, down, up = (config[key] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    head = config["attention_head_dim"]
    return (
        all(config[key] in FIXED[key] for key in keys & FIXED.keys())
        and all(block in ATTENTION for block in (*down, *up))
        and len(widths) == len(down) == len(up)
        and all(type(config[key]) in kinds for key, kinds in KINDS.items())
        and config["norm_eps"] > 0
        and (head is None or (head > 0 and not any(width % head for width in widths)))
        and config["resnet_time_scale_shift"] in ("default", "scale_shift")
    )


class Laid:
    """A layer that draws no first numbers where it has no memory: torch would import its compiler for that."""

    weight: Tensor

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]


class Conv2d(Laid, nn.Conv2d):
    pass


class Linear(Laid, nn.Linear):
    pass


class Labels(Laid, nn.Embedding):
    pass


class UNet2D(nn.Module):
    """network(x, time, class_labels) -> (B, out_channels, H, W), for x (B, in_channels, H, W) and times () or (B,).

    `config` is diffusers' of a `UNet2DModel`, one that `covers` accepts.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = dict(config)
        widths: Sequence[int] = config["block_out_channels"]
        layers, embedded = config["layers_per_block"], 4 * widths[0]
        self.conv_in = Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = Embedding(widths[0], embedded)
        count = config["num_class_embeds"]
        self.class_embedding = None if count is None else Labels(count, embedded)
        kept = [widths[0]]  # channels of what the way down leaves for the way up
        self.down_blocks = nn.ModuleList()
        for i, kind in enumerate(config["down_block_types"]):
            inputs = [kept[-1]] + [widths[i]] * (layers - 1)
            last = i == len(widths) - 1
            self.down_blocks.append(Down(config, inputs, widths[i], embedded, ATTENTION[kind], resize=not last))
            kept += [widths[i]] * (layers + (not last))
        self.up_blocks = nn.ModuleList()
        width = widths[-1]
        for i, kind in enumerate(config["up_block_types"]):
            inputs = []
            for _ in range(layers + 1):
                inputs.append(width + kept.pop())
                width = widths[-1 - i]
            last = i == len(widths) - 1
            self.up_blocks.append(Up(config, inputs, width, embedded, ATTENTION[kind], resize=not last))
        self.mid_block = Middle(config, widths[-1], embedded)
        self.conv_norm_out = nn.GroupNorm(config["norm_num_groups"], widths[0], config["norm_eps"])
        self.conv_out = Conv2d(widths[0], config["out_channels"], 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if (class_labels is None) != (self.class_embedding is None):
            raise ValueError("class_labels must be given to a network with classes, and to no other")
        embedding = self.time_embedding(self._waves(time.expand(len(x))).to(x.dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        x = self.conv_in(x)
        kept = [x]
        for block in self.down_blocks:
            x, states = block(x, embedding)
            kept += states
        x = self.mid_block(x, embedding)
        for block in self.up_blocks:
            x = block(x, kept, embedding)
        answer: Tensor = self.conv_out(silu(self.conv_norm_out(x)))
        return answer

    def _waves(self, time: Tensor) -> Tensor:
        half = self.config["block_out_channels"][0] // 2
        places = torch.arange(half, dtype=torch.float32, device=time.device)
        phases = time[:, None].float() * torch.exp(-math.log(SLOWEST) * places / (half - self.config["freq_shift"]))
        parts = [phases.sin(), phases.cos()]
        return torch.cat(parts[::-1] if self.config["flip_sin_to_cos"] else parts, dim=1)


class Embedding(nn.Module):
    def __init__(self, width: int, embedded: int):
        super().__init__()
        self.linear_1, self.linear_2 = Linear(width, embedded), Linear(embedded, embedded)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.linear_2(silu(self.linear_1(x)))
        return answer


class Resnet(nn.Module):
    """x + conv(norm(conv(norm(x)))), with the embedding added between, or as scale and shift of the second norm."""

    def __init__(self, config: Mapping[str, Any], inputs: int, width: int, embedded: int):
        super().__init__()
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        self.scaled = config["resnet_time_scale_shift"] == "scale_shift"
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, eps), Conv2d(inputs, width, 3, padding=1)
        self.time_emb_proj = Linear(embedded, 2 * width if self.scaled else width)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width, eps), Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        told = self.time_emb_proj(silu(embedding))[:, :, None, None]
        if self.scaled:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        return self.conv_shortcut(x) + self.conv2(silu(h))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """x + attention of all places to all places, in heads of `attention_head_dim` channels."""

    def __init__(self, config: Mapping[str, Any], width: int, norm: bool = True):
        super().__init__()
        self.head = config["attention_head_dim"] or width
        self.group_norm = nn.GroupNorm(config["norm_num_groups"], width, config["norm_eps"]) if norm else nn.Identity()
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x.flatten(2)).transpose(1, 2)
        q, k, v = (to(h).unflatten(2, (-1, self.head)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h.transpose(1, 2).reshape(x.shape) + x  # type: ignore[no-any-return]


class Resized(nn.Module):
    """A convolution that halves the sides, or follows their doubling."""

    def __init__(self, width: int, halve: bool):
        super().__init__()
        self.halve = halve
        self.conv = Conv2d(width, width, 3, stride=2 if halve else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.conv(x if self.halve else interpolate(x, scale_factor=2.0, mode="nearest"))
        return answer


class Layers(nn.Module):
    """Residual blocks, each with its attention where there is one."""

    def __init__(self, config: Mapping[str, Any], inputs: Sequence[int], width: int, embedded: int, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList(Attention(config, width) for _ in inputs) if attention else None
        self.resnets = nn.ModuleList(Resnet(config, each, width, embedded) for each in inputs)

    def layer(self, i: int, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resnets[i](x, embedding)
        return x if self.attentions is None else self.attentions[i](x)


class Down(Layers):
    def __init__(self, *args: Any, resize: bool):
        super().__init__(*args)
        self.downsamplers = nn.ModuleList([Resized(args[2], halve=True)]) if resize else ()

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, embedding)
            states.append(x)
        for halve in self.downsamplers:
            x = halve(x)
            states.append(x)
        return x, states


class Middle(nn.Module):
    def __init__(self, config: Mapping[str, Any], width: int, embedded: int):
        super().__init__()
        # diffusers leaves the norm out where the embedding scales.
        norm = config["resnet_time_scale_shift"] == "default"
        attends = config.get("add_attention", True)
        self.attentions = nn.ModuleList([Attention(config, width, norm)] if attends else [])
        self.resnets = nn.ModuleList(Resnet(config, width, width, embedded) for _ in range(2))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, embedding)  # type: ignore[no-any-return]


class Up(Layers):
    def __init__(self, *args: Any, resize: bool):
        super().__init__(*args)
        self.upsamplers = nn.ModuleList([Resized(args[2], halve=False)]) if resize else ()

    def forward(self, x: Tensor, kept: list[Tensor], embedding: Tensor) -> Tensor:
        """Takes what it joins off the end of `kept`."""
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, kept.pop()], dim=1), embedding)
        for double in self.upsamplers:
            x = double(x)
        return x
