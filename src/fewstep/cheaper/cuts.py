"""Where a network can be cut: what is left out of a call that reuses features, and what stands in for it.

    U-Net          `depth` d recomputes the outermost d + 1 skip connections, from their source to the output, as the
                   DeepCache branch d does: with 0 conv_in, the last residual block and conv_out. What the layers
                   inside answered is predicted from earlier calls.
    transformer    `depth` d recomputes the first and the last d blocks. What those between add to their input is
                   predicted, so that what is new in the input passes.

Xu, Ma, et al., DeepCache (CVPR 2024), section 3.2; Chen et al., Delta-DiT (2024), section 4.1. The blocks of
transformers, and what they return, are told by diffusers' registry for its own caches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Cut", "cut", "depths"]

UNET_PARTS = {"resnets", "attentions", "downsamplers", "upsamplers"}


class Cut(NamedTuple):
    """The modules that are skipped, in the order in which they run; the last one's answer is predicted.

    `added`: predicted is what they add to `stream`, the tensors that the first is given and the last returns.
    """

    depth: int
    skipped: tuple[nn.Module, ...]
    added: bool

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """What the first of the blocks is given, in the order in which blocks return it."""
        told = _registered(self.skipped[0])
        names = {
            told.return_hidden_states_index: told.hidden_states_argument_name,
            told.return_encoder_hidden_states_index: told.encoder_hidden_states_argument_name,
        }
        found = [told._get_parameter_from_args_kwargs(names[i], args, kwargs) for i in sorted(names.keys() - {None})]
        return [each for each in found if each is not None]


def depths(network: nn.Module) -> range:
    """The cuts that a network has, from the cheapest; ValueError if it is none that is known."""
    if _is_unet(network):
        return range(len(_sources(network)) - 1)
    blocks = _blocks(network)
    return range(1, (len(blocks) - 1) // 2 + 1)


def cut(network: nn.Module, depth: int) -> Cut:
    """The cut at `depth`; ValueError where the network has none there, or is none that can be cut."""
    allowed = depths(network)
    if depth not in allowed:
        raise ValueError(f"depth must lie in [{allowed.start}, {allowed.stop - 1}] for this network; got {depth!r}")
    if not _is_unet(network):
        return Cut(depth, tuple(_blocks(network)[depth:-depth]), True)
    sources, uses = _sources(network), _uses(network)
    middle = [module for name, module in network.named_children() if name == "mid_block"]
    inner = [*sources[depth + 1 :], middle, *uses[: -depth - 1]]
    return Cut(depth, tuple(module for part in inner for module in part), False)


def _is_unet(network: nn.Module) -> bool:
    return all(hasattr(network, name) for name in ("conv_in", "down_blocks", "up_blocks", "mid_block"))


def _parts(block: Any, ends: str) -> list[list[nn.Module]]:
    """The residual blocks with their attentions, and what follows the last."""
    if unknown := {name for name, _ in block.named_children()} - UNET_PARTS:
        raise ValueError(f"a {type(block).__name__} cannot be cut: it has {min(unknown)}, which is not known here")
    resnets, attentions = list(block.resnets), list(getattr(block, "attentions", None) or [])
    if attentions and len(attentions) != len(resnets):
        raise ValueError(f"a {type(block).__name__} of {len(resnets)} residual blocks and {len(attentions)} attentions")
    parts = [[resnet, *attentions[i : i + 1]] for i, resnet in enumerate(resnets)]
    return [*parts, list(getattr(block, ends) or [])]


def _sources(network: Any) -> list[list[nn.Module]]:
    """What makes each skip connection, outermost first."""
    found: list[list[nn.Module]] = [[network.conv_in]]
    for block in network.down_blocks:
        *parts, sampler = _parts(block, "downsamplers")
        found += [*parts, *([sampler] if sampler else [])]
    return found


def _uses(network: Any) -> list[list[nn.Module]]:
    """What each skip connection flows into, innermost first."""
    found: list[list[nn.Module]] = []
    for block in network.up_blocks:
        *parts, sampler = _parts(block, "upsamplers")
        parts[-1] += sampler
        found += parts
    if len(found) != len(_sources(network)):
        raise ValueError(f"a {type(network).__name__} whose skip connections are not used one by one cannot be cut")
    return found


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer of diffusers, in order."""
    found = [
        block
        for blocks in network.children()
        if isinstance(blocks, nn.ModuleList)
        for block in blocks
        if _registered(block) is not None
    ]
    if len(found) < 3:
        raise ValueError(
            f"{type(network).__name__} cannot be cut: neither a U-Net of diffusers nor a transformer with three blocks "
            "that diffusers has registered for caches"
        )
    return found


def _registered(block: nn.Module) -> Any:
    """What diffusers knows of a block of this class, or None."""
    try:
        from diffusers.hooks._helpers import TransformerBlockRegistry
    except ImportError as error:
        raise ImportError("caching needs diffusers: pip install 'fewstep[diffusers]'") from error
    try:
        return TransformerBlockRegistry.get(type(block))
    except ValueError:
        return None
