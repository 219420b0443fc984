"""A stand-in for a pipeline's scheduler: it has one step, or none, and does not take it."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..integrations.diffusers import EVODiffScheduler
from ..integrations.diffusers_levels import Levels, levels, told
from ..schedule import Discrete, Flow, Node

__all__ = ["Asking"]


class Asking(EVODiffScheduler):
    """What a pipeline's network answers at `x` and the time `t`, as `denoised`, once the pipeline has run with `at`.

    It reads a config as EVODiffScheduler does, and refuses what that refuses. `asked` is what the pipeline asked of
    `set_timesteps`.
    """

    x: Tensor | None = None
    node: Node | None = None
    denoised: Tensor | None = None

    @property
    def schedule(self) -> Discrete | Flow:
        return self._schedule

    def at(self, t: float | None, x: Tensor | None) -> Self:
        """A copy of one step from `x` at the schedule's time `t`; of none if that is None."""
        asking = copy.copy(self)
        end = self._schedule.node(self._schedule.t_clean)
        asking.x, asking.node = x, None if t is None else self._schedule.node(t)
        found = Levels((end,), np.empty(0, np.float32))
        if asking.node is not None:
            found = told(self.config, self._schedule, (asking.node, end))
        asking._set(found, None)
        return asking

    def planned(self, steps: int | None, sigmas: Any = None, mu: float | None = None, timesteps: Any = None) -> Any:
        """The nodes that EVODiffScheduler takes for these arguments of `set_timesteps`."""
        return levels(self.config, self._schedule, steps, sigmas, mu, timesteps).nodes

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        if sigmas is not None and timesteps is not None:
            raise ValueError(
                "this pipeline tells its network other times than those of its noise levels: use EVODiffScheduler in it"
            )
        self.asked = {"steps": num_inference_steps, "sigmas": sigmas, "mu": mu, "timesteps": timesteps}
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = len(self.timesteps)

    def set_begin_index(self, begin_index: int = 0) -> None:
        pass

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any
    ) -> Any:
        if self.x is None or sample.shape != self.x.shape:
            raise ValueError(
                f"this pipeline makes latents of shape {tuple(sample.shape)} of those that it is given, "
                f"{None if self.x is None else tuple(self.x.shape)}: use EVODiffScheduler in it"
            )
        self.denoised = self.answered(model_output)
        return SchedulerOutput(sample) if return_dict else (sample, self.denoised)

    def answered(self, output: Tensor) -> Tensor:
        """The denoised x in the network's output at it."""
        assert self.x is not None
        assert self.node is not None
        x = self.x.float() if self.x.element_size() < 4 else self.x
        return self._denoised(output, x, self.node)
