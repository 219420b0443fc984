"""Convolutions of 3 x 3 in less than half of the multiplications: the same network, to rounding.

Winograd's F(4 x 4, 3 x 3) makes 16 outputs of a tile of 36 inputs by 36 products for each pair of channels, where the
sum itself takes 144:

    Y = A^T [ (G g G^T) * (B^T d B) ] A

with the weights g, transformed once, and the inputs d; sums over channels are products of matrices. Lavin & Gray, Fast
Algorithms for Convolutional Neural Networks (2016), section 4.3. Rounding is some ten times that of the sum.

Processors' libraries for convolutions sum; those of GPUs choose Winograd themselves where it pays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .network import Run, hooked, in_use, network_of, run_of, with_network

__all__ = ["Winograd", "winograd"]

M = TypeVar("M")

OUT, IN = 4, 6  # the sides of a tile: of outputs, and of the inputs that they are made of
# B^T, G and A^T of F(4 x 4, 3 x 3): the paper's
ENTER = [
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
]  # fmt: skip
WEIGH = [
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
]  # fmt: skip
LEAVE = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
CHANNELS, SIDE = 32, 8  # below these the transforms take as long as what they save
TOGETHER = 2**20  # numbers of tiles at once, 4 MB: what a processor keeps near


def winograd(model: M, *, run: Run | None = None) -> M:
    """A copy of `model`, a network or a model with one, whose 3 x 3 convolutions are Winograd's.

    Those of stride 1 and 32 channels or more that are given images of 8 x 8 or more; others stay. `run` is as for
    `half`: by it the sizes are seen. Files are those of the network: `save` and `load` as before. Weights are
    transformed here and where they are loaded, and take no gradient: train and edit them before, not afterwards; those
    that something else makes, as weight norm does, stay. Memory: four times these weights more. What it gains is the
    machine's: docs/cheaper.md. TypeError for what has no network; ValueError where no layer is such.
    """
    network = network_of(model)
    given = run_of(model, run)
    sides: dict[str, int] = {}

    def see(name: str, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        given = args[0] if args else named["input"]
        sides[name] = max(min(given.shape[-2:]), sides.get(name, 0))

    fits = {name: layer for name, layer in network.named_modules() if _fits(layer)}
    handles = [
        layer.register_forward_pre_hook(lambda layer, args, named, name=name: see(name, args, named), with_kwargs=True)
        for name, layer in fits.items()
    ]
    with hooked(handles), in_use(network):
        given(network)
    chosen = [name for name, side in sides.items() if side >= SIDE]
    if not chosen:
        raise ValueError(
            f"no convolution is of 3 x 3, stride 1, {CHANNELS} channels or more, float32 and of {SIDE} x {SIDE} or "
            "more: there is nothing to gain"
        )
    network = copy.deepcopy(network)
    for layer in map(network.get_submodule, chosen):
        layer.__class__ = Winograd  # a copy of ours; its hooks and names stay
        layer.get_parameter("weight").requires_grad_(False)
        _transform(layer)
        layer.register_load_state_dict_post_hook(_transform)
    return with_network(model, network)


class Winograd(nn.Conv2d):
    """The layer. What is small, in half precision or under autocast is summed as before, and what is wrong refused."""

    enter: Tensor
    leave: Tensor
    weights: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not self._suits(input):
            return super().forward(input)
        batch, channels, height, width = input.shape
        tiles = batch * -(-height // OUT) * -(-width // OUT)
        parts = input.chunk(-(-tiles * IN * IN * channels // TOGETHER))
        y = torch.cat([self._tiled(part) for part in parts]) if len(parts) > 1 else self._tiled(input)
        return (y if self.bias is None else y + self.bias).movedim(-1, 1)

    def _suits(self, x: Tensor) -> bool:
        alike = x.ndim == 4 and x.shape[1] == self.in_channels and x.dtype == self.weights.dtype and not x.is_meta
        return (
            alike
            and x.element_size() >= 4
            and x.numel() > 0
            and min(x.shape[2:]) >= SIDE
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Winograd:
        """Transformed anew in another precision, as rounding does not commute with it."""
        dtype = self.weight.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != dtype:
            _transform(self)
        return self

    def _tiled(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels), as convolutions like them best; without the bias."""
        batch, channels, height, width = x.shape
        whole = pad(x.movedim(1, -1), (0, 0, 1, 1 + -width % OUT, 1, 1 + -height % OUT))
        tiles = whole.unfold(1, IN, OUT).unfold(2, IN, OUT)  # (batch, rows, columns, channels, IN, IN)
        rows, columns = tiles.shape[1:3]
        entered = self.enter @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(IN * IN, -1)
        summed = torch.bmm(entered.view(IN * IN, -1, channels), self.weights)
        left = (self.leave @ summed.view(IN * IN, -1)).view(OUT, OUT, batch, rows, columns, -1)
        y = left.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * OUT, columns * OUT, -1)
        return y[:, :height, :width]


def _fits(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and "weight" in layer._parameters  # no parametrization, no old weight norm
        and "forward" not in vars(layer)
        and (type(layer).forward, type(layer)._conv_forward) == (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        and (layer.kernel_size, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and (layer.padding, layer.padding_mode, layer.groups) == ((1, 1), "zeros", 1)
        and min(layer.in_channels, layer.out_channels) >= CHANNELS
        and layer.weight.dtype in (torch.float32, torch.float64)
    )


def _transform(layer: nn.Module, loaded: object = None) -> None:
    """The weights as they meet the transformed tiles, (IN IN, in, out), and both transforms, made in float64.

    Of half precision, which is summed, nothing.
    """
    weight = layer.get_parameter("weight").detach()
    enter, weigh, leave = (weight.new_tensor(rows, dtype=torch.float64) for rows in (ENTER, WEIGH, LEAVE))
    products = torch.einsum("ik,ockl,jl->ijco", weigh, weight.double(), weigh).flatten(0, 1)
    if weight.element_size() < 4:
        products = products[:0]
    for name, made in {"enter": enter.kron(enter), "leave": leave.kron(leave), "weights": products}.items():
        layer.register_buffer(name, made.to(weight.dtype).contiguous(), persistent=False)
