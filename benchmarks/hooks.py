"""What diffusers' own caches do in few calls: how much of a run they leave out, and what one run leaves to the next.

On a small Flux transformer with random weights, whose errors would say nothing: which calls reuse is decided by numbers
of calls, by times and by how features change, and what is kept shows in whether a second run equals the first.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fewstep as fs
from fewstep.bench.markdown import table

__all__ = ["Hook", "hooks", "report", "without"]

CALLS = (8, 10, 20)
TOKENS, WORDS = 16, 4
TRAINED = 1000  # diffusers' times
BROKEN = 5  # the call in which a run is broken off
RULES = {
    "FirstBlockCache": "the change of the first block's answer",
    "TaylorSeerCache": "an interval of calls",
    "MagCache": "ratios measured on a model in a number of calls",
    "PyramidAttentionBroadcast": "an interval of calls, between two times",
    "FasterCache": "an interval of calls, below a time",
}
NETWORKS = "UNet2DModel UNet2DConditionModel DiTTransformer2DModel PixArtTransformer2DModel SD3Transformer2DModel"


class Hook(NamedTuple):
    """`left` has the share of operations for each number of calls.

    `second`: how much the second run differs from the first, relative; `broken`: the first after one that broke off.
    """

    name: str
    left: Sequence[float]
    second: float
    broken: float


class Flux:
    """The transformer as a denoiser of tokens, (B, tokens, channels)."""

    schedule = fs.Flow()

    def __init__(self) -> None:
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(0)
        network: Any = FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=4, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
        self.network = network.eval()
        self.given = {"encoder_hidden_states": torch.randn(1, WORDS, 32), "pooled_projections": torch.randn(1, 32)}
        self.time, self.broken = 1.0, -1

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        self.time = float(t)
        self.broken -= 1
        if self.broken == 0:
            raise KeyboardInterrupt
        places = {"img_ids": torch.zeros(TOKENS, 3), "txt_ids": torch.zeros(WORDS, 3)}
        with self.network.cache_context("cond"):
            answer = self.network(hidden_states=x, timestep=x.new_full((len(x),), self.time), **self.given, **places)
        return fs.to_denoised("flow_prediction", answer.sample, x, self.schedule.node(self.time))


def _configured(name: str, calls: int, flux: Flux) -> Any:
    """The hook's defaults; told of the calls, and of the time, where it asks."""
    import diffusers

    kind = getattr(diffusers, f"{name}Config")
    asks = inspect.signature(kind).parameters
    known: dict[str, Any] = {
        "num_inference_steps": calls, "mag_ratios": torch.ones(calls), "is_guidance_distilled": True,
        "spatial_attention_block_skip_range": 2,
        "current_timestep_callback": lambda: int(flux.time * TRAINED), "attention_weight_callback": lambda module: 1.0,
    }  # fmt: skip
    return kind(**{key: value for key, value in known.items() if key in asks})


def _run(flux: Flux, calls: int) -> Tensor:
    return fs.sample(flux, fs.unit_noise([0], (TOKENS, 4)), nfe=calls)


def _operations(flux: Flux, calls: int) -> int:
    with FlopCounterMode(display=False) as counter:
        _run(flux, calls)
    return int(counter.get_total_flops())


def hooks() -> Iterator[Hook]:
    """Nothing is reset between runs, as a pipeline does when its call ends, and not where it is broken off."""
    whole = {calls: _operations(Flux(), calls) for calls in CALLS}
    for name in RULES:
        left = [_operations(_with(name, calls), calls) / whole[calls] for calls in CALLS]
        flux, other = (_with(name, CALLS[0]) for _ in range(2))
        first = _run(flux, CALLS[0])
        other.broken = BROKEN
        with suppress(KeyboardInterrupt):
            _run(other, CALLS[0])
        yield Hook(name, left, *(_apart(_run(each, CALLS[0]), first) for each in (flux, other)))


def without() -> list[str]:
    """Networks of diffusers that take none of these caches."""
    import diffusers

    return [name for name in NETWORKS.split() if not hasattr(getattr(diffusers, name), "enable_cache")]


def report(found: Sequence[Hook], lacking: Sequence[str]) -> str:
    rows = [
        [name, RULES[name], *(f"{share:.2f}" for share in left), f"{second:.1g}", f"{broken:.1g}"]
        for name, left, second, broken in found
    ]
    head = ["", "reuses by", *(f"{calls} calls" for calls in CALLS), "second run", "after one broken off"]
    return TEXT + table(head, rows) + "\n" + textwrap.fill(LACKING.format(networks=", ".join(lacking)), 120) + "\n"


TEXT = """### diffusers' own caches

At their defaults, on a small Flux with random weights: what share of operations is left in a run of EVODiff, and how
much a run differs from the first one, relative, when it is the second, and when it comes after one that was broken off.
A pipeline resets its network where its call ends, and not where it is broken off; `network._reset_stateful_cache()`
does, too. Times are diffusers', 0 to 1000.

"""
LACKING = """None of them takes a plan of calls, so that `plan_cache` does not drive them; it takes from diffusers what
it has registered of a network's blocks, and cuts them itself. In few calls they leave out little: FirstBlockCache's
threshold is for calls that differ less; TaylorSeer, PyramidAttentionBroadcast and FasterCache reuse attention alone,
and the first foretells it in the number of the call, not in log sigma. MagCache leaves out what its ratios tell it to,
which have to be measured for the model and the number of calls; here they are ones, so that it leaves out all that it
may. {networks} take none."""


def _with(name: str, calls: int) -> Flux:
    flux = Flux()
    flux.network.enable_cache(_configured(name, calls, flux))
    return flux


def _apart(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())
