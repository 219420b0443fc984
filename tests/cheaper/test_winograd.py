"""Winograd's convolutions are the network's to rounding, in a quarter of the products."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from fewstep import cheaper
from fewstep.cheaper.network import weight_bytes
from fewstep.cheaper.winograd import CHANNELS, IN, OUT, SIDE, Winograd


def layer(dtype=torch.float64, channels=(CHANNELS, CHANNELS + 1), **options):
    torch.manual_seed(0)
    return nn.Conv2d(*channels, 3, padding=1, dtype=dtype, **options)


def winograd(network, size=16):
    """As its layers are seen on images of this size."""

    def run(network):
        for each in network.modules():
            if isinstance(each, nn.Conv2d):
                each(torch.zeros(1, each.in_channels, size, size, dtype=each.weight.dtype))

    return cheaper.winograd(network, run=run)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 9, 14), (5, 64, 61)])
def test_it_is_the_convolution(size, bias):
    """Of any size, tiles or not, in one piece or several, and any layout; so is its derivative."""
    plain = layer(bias=bias)
    quick = winograd(plain)
    x = torch.randn(size[0], CHANNELS, *size[1:], dtype=torch.float64, requires_grad=True)
    for given in (x, x.to(memory_format=torch.channels_last)):
        exact, got = plain(given), quick(given)
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
        assert type(quick) is Winograd
        (wanted,), (found,) = (torch.autograd.grad(y.sin().sum(), x) for y in (exact, got))
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_in_float32_it_rounds_as_the_paper_says():
    """Some ten times the rounding of the sum, which is of the size 2^-24 of the root of its terms."""
    plain = layer(torch.float32, (64, 64))
    x = torch.randn(4, 64, 16, 16)
    exact = conv2d(x.double(), plain.weight.double(), plain.bias.double(), padding=1)
    off = ((winograd(plain)(x) - exact).norm() / exact.norm()).item()
    assert off < 30 * math.sqrt(9 * 64) / OUT * 2.0**-24


def test_it_makes_a_quarter_of_the_products():
    plain = layer(torch.float32, (64, 64))
    x, counts = torch.randn(1, 64, 16, 16), []
    for each in (plain, winograd(plain)):
        with FlopCounterMode(display=False) as counter:
            each(x)
        counts.append(counter.get_flop_counts()["Global"])
    products = counts[1][torch.ops.aten.bmm]
    assert products / sum(counts[0].values()) == (IN / OUT) ** 2 / 9 == 0.25
    assert sum(counts[1].values()) < 0.6 * sum(counts[0].values())  # with the transforms, of few channels


def test_only_what_fits_is_changed_and_the_given_network_never():
    network = nn.Sequential(
        layer(torch.float32, (3, CHANNELS)), layer(torch.float32, (CHANNELS, CHANNELS)),
        nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.Conv2d(CHANNELS, CHANNELS, 3), layer(torch.float32, (CHANNELS, CHANNELS), groups=2),
        layer(torch.bfloat16, (CHANNELS, CHANNELS)),
        layer(torch.float32, (CHANNELS, CHANNELS), padding_mode="circular"),
    )  # fmt: skip
    small = winograd(network)
    assert [type(each) is Winograd for each in small] == [False, True, *[False] * 6]
    assert not any(type(each) is Winograd for each in network)
    assert weight_bytes(small) - weight_bytes(network) >= 4 * (4 * CHANNELS**2 * 9)
    for useless, size in ((network[0], 16), (network[1], SIDE - 1)):
        with pytest.raises(ValueError, match="no convolution is of 3 x 3"):
            winograd(useless, size)
    with pytest.raises(TypeError, match="run is needed for a network alone"):
        cheaper.winograd(network)


def test_small_images_and_half_precision_are_summed_as_before():
    plain = layer(torch.float32)
    quick = winograd(plain)
    x = torch.randn(2, CHANNELS, SIDE - 1, 20)
    assert torch.equal(quick(x), plain(x))
    x = torch.randn(2, CHANNELS, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(x), plain(x))
    assert torch.equal(quick.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


@pytest.mark.parametrize("shape", [(CHANNELS, 9, 9), (0, CHANNELS, 9, 9), (2, CHANNELS, 9, 9)])
def test_it_takes_what_the_layer_takes(shape):
    """One image, none, and the input by its name; in the run by which sizes are seen, too."""
    plain, x = layer(torch.float32), torch.randn(shape)
    quick = cheaper.winograd(plain, run=lambda network: network(input=torch.zeros(CHANNELS, 9, 9)))
    torch.testing.assert_close(quick(input=x), plain(x), rtol=1e-4, atol=1e-5)
    assert type(quick) is Winograd


@pytest.mark.parametrize("x", [torch.zeros(1, CHANNELS + 1, 9, 9), torch.zeros(1, CHANNELS, 9, 9).double()])
def test_it_refuses_what_the_layer_refuses(x):
    plain = layer(torch.float32)
    with pytest.raises(RuntimeError) as wanted:
        plain(x)
    with pytest.raises(RuntimeError) as caught:
        winograd(plain)(x)
    assert str(caught.value) == str(wanted.value)


class Doubling(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


def hidden():
    """A layer with a forward of its own, as accelerate's hooks leave it."""
    made = layer(torch.float32, (CHANNELS, CHANNELS))
    made.forward = partial(nn.Conv2d.forward, made)
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.weight_norm(layer(torch.float32, (CHANNELS, CHANNELS))),
        lambda: prune.random_unstructured(layer(torch.float32, (CHANNELS, CHANNELS)), "weight", 0.5),
        lambda: Doubling(CHANNELS, CHANNELS, 3, padding=1),
        hidden,
    ],
)
def test_what_is_not_the_sum_of_its_own_weights_stays(make):
    network = nn.Sequential(make(), layer(torch.float32, (CHANNELS, CHANNELS)))
    quick, x = winograd(network), torch.randn(1, CHANNELS, 9, 9)
    assert type(quick[0]) is type(network[0])
    assert type(quick[1]) is Winograd
    assert torch.equal(quick[0](x), network[0](x))


def test_in_another_precision_it_is_transformed_anew():
    """In half, it takes no memory for what it does not use; back from there, and in double, it is the layer."""
    plain = layer(torch.float32)
    x, quick = torch.randn(1, CHANNELS, 9, 9, dtype=torch.float64), winograd(plain)
    torch.testing.assert_close(copy.deepcopy(quick).double()(x), plain.double()(x), rtol=1e-12, atol=1e-12)
    half = quick.bfloat16()
    assert weight_bytes(half) - weight_bytes(plain.bfloat16()) == 2 * IN**2 * (IN**2 + OUT**2)
    torch.testing.assert_close(half.float()(x.float()), plain.float()(x.float()), rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_followed_are_not_trained():
    """A gradient of them would be nothing, and the optimiser silent."""
    quick = winograd(layer(torch.float32))
    assert [name for name, each in quick.named_parameters() if each.requires_grad] == ["bias"]


def test_files_and_hooks_are_those_of_the_network(tmp_path):
    plain, other = layer(torch.float32), layer(torch.float32)
    heard = []
    plain.register_forward_pre_hook(lambda module, given: heard.append(1))
    quick = winograd(plain)
    nn.init.normal_(other.weight)
    cheaper.save(other, tmp_path / "other.safetensors")
    cheaper.save(quick, tmp_path / "quick.safetensors")
    x = torch.randn(1, CHANNELS, 8, 8)
    assert torch.equal(cheaper.load(other, tmp_path / "quick.safetensors")(x), plain(x))
    assert torch.equal(cheaper.load(quick, tmp_path / "other.safetensors")(x), winograd(other)(x))
    assert len(heard) == 3  # the first as it was seen
