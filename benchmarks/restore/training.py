"""Small networks for restoring, trained here: minutes on one core, on from where they were stopped."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.command import say
from fewstep.adapters import EDMModel
from fewstep.files import write_atomically

__all__ = ["BATCH", "denoising_loss", "trained", "unet"]

BATCH = 32
RATE, WARMUP = 2e-3, 200  # of AdamW at its most, and the steps in which it comes there; then a cosine down to 0
AVERAGE = 0.999  # of the weights, from step to step
EVERY = 250  # steps to a checkpoint


def unet(channels_in: int, channels_out: int, widths: tuple[int, ...], side: int) -> nn.Module:
    """Convolutions alone."""
    return UNet2DModel(  # type: ignore[return-value]
        sample_size=side,
        in_channels=channels_in,
        out_channels=channels_out,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
    )


def denoising_loss(model: EDMModel, clean: Tensor, sigma: Tensor, draw: torch.Generator) -> Tensor:
    """EDM's, of the levels `sigma` (B,): 1 for a network that answers 0, if `sigma_data` is right."""
    level, data = sigma[:, None, None, None], model.sigma_data
    x = clean + level * torch.randn(clean.shape, generator=draw)
    weight = (level**2 + data**2) / (level * data) ** 2
    return (weight * (model(x, sigma) - clean).square()).mean()


def trained(path: Path, network: nn.Module, loss: Callable[[torch.Generator], Tensor], steps: int) -> nn.Module:
    """`network` after `steps` steps along `loss`, its weights averaged. Checkpoints are kept at `path`; a whole run is
    read from there.

    `loss` is a function of its random numbers, of the network as it is.
    """
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {
        "network": network, "average": average, "optimizer": optimizer
    }  # fmt: skip
    step = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        if saved["steps"] != steps:
            raise ValueError(
                f"{path} is of {saved['steps']} steps and not {steps}: remove it, or choose another folder"
            )
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step = saved["step"]
    total = 0.0
    while step < steps:
        share = min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = share * RATE
        optimizer.zero_grad()
        found = loss(torch.Generator().manual_seed(step))
        found.backward()
        optimizer.step()
        average.update_parameters(network)
        step, total = step + 1, total + found.item()
        if step % EVERY == 0 or step == steps:
            content = io.BytesIO()
            torch.save(
                {name: part.state_dict() for name, part in parts.items()} | {"step": step, "steps": steps}, content
            )
            write_atomically(path, content.getvalue())
            say(f"{path.name}: step {step} of {steps}, loss {total / ((step - 1) % EVERY + 1):.4f}")
            total = 0.0
    whole: nn.Module = average.module
    return whole.eval().requires_grad_(False)
