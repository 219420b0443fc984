"""fewstep's solvers as a scheduler of diffusers:

    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)

docs/diffusers.md says for which pipelines, and when not to. The scheduler is a driver like `fewstep.sample`: it plans
once, in `set_timesteps`, and every `step` is one stage of the plan. It differs in that others own x between the calls:

- an edit of the latents (inpainting, callbacks) survives: every correction is a difference to the x that is given
  (`differences`);
- half-precision latents lose nothing: what rounding took from them is added again at the next step;
- a run may begin anywhere: it is then planned anew from there, so that it is the run that starts there;
- the state before the last step is kept: a step may be repeated, after `_step_index -= 1`.

`step` waits for no device: it knows numbers from the plan alone, and the place of a timestep from its place in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..guidance import magnitude
from ..prediction import KINDS, to_denoised
from ..schedule import Discrete, Flow, Node
from ..solvers import Solver, Stage, Tuned
from ..solvers.core.base import choice
from ..solvers.core.planned import planned
from ..solvers.evodiff.solver import RULES
from ..table import SOLVERS
from .differences import as_differences
from .diffusers_configs import GRIDS, check_used, check_values, parameters, translated
from .diffusers_levels import Levels, betas, level, levels, part_of, table_of, told, training_levels

__all__ = ["EVODiffScheduler", "EVODiffSchedulerOutput"]

AUTO = "auto"
HIGHEST = 4  # order of any solver
WITHIN = 1e-6  # of a level, as FlowMatchEuler compares those of tokens


@dataclass
class EVODiffSchedulerOutput(SchedulerOutput):
    """`prev_sample`, the latents at the next timestep, and `pred_original_sample`, the clean ones that the model
    predicts at this, float32 or better: for previews, of the shape of the latents, a copy."""

    pred_original_sample: Tensor | None = None


class Memory(NamedTuple):
    """What a step leaves for the next: the solver's state, what rounding took from x, and the shape of x."""

    state: Any = None
    residue: Tensor | None = None
    shape: torch.Size | None = None


class EVODiffScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """EVODiff, and every other solver of fewstep that calls once a step, in diffusers' pipelines.

    Options that diffusers does not have:

    `solver`: a name of `fewstep.table.SOLVERS`, such as "evodiff", "evodiff-published", "unipc-3", "dpmpp-2m", "ddim",
        "sde-dpmpp-2m".
    `channel_dim`: the dimension of the latents that holds channels, which "evodiff-published" measures apart; None
        measures a sample as a whole. "auto" is 1, and -1 for three-dimensional latents (B, L, C) of flows.

    `use_focused_sigmas`: the noise levels of `fewstep.grid.focused`, which "evodiff" was developed on.
    `data_std`: about the standard deviation of what the model makes, for "evodiff" and its levels: 0.5 for images in
        [-1, 1], 1 for latents that are scaled to it. None asks the range of the betas: 0.5, or more where they end at
        visible noise, 0.93 for Stable Diffusion's.
    `tuned`: a file of `fewstep.tune` on this model, in place of "evodiff": its levels, unless others are given, what
        the model is told at them, and its weights. A run that begins in the middle has weights as other budgets have.
        docs/tune.md.

    All others are those of diffusers' multistep and flow schedulers: which noise levels, what the model predicts,
    thresholding or `clip_sample`. `use_lu_lambdas` is even steps of log-SNR, `timestep_type="continuous"` tells the
    model log(sigma) / 4 as EulerDiscrete does, "integer" takes the levels of whole timesteps only, `snr_shift_scale` is
    CogVideoX's. `lower_order_final=False` gives the last step the solver's full order; True leaves it to EVODiff's
    rule, or, with linear solvers, to what is best on Gaussian data (`fewstep.solvers.core.last_steps`).
    """

    _compatibles = [known.name for known in KarrasDiffusionSchedulers if not known.name.startswith("EDM")]  # noqa: RUF012
    order = 1  # calls a step, to pipelines
    _nodes: tuple[Node, ...]  # levels of x
    _told: tuple[Node, ...]  # and those that the model is told there: a tuned plan may have others

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray[Any, Any] | list[float] | None = None,
        solver: str = "evodiff",
        channel_dim: int | str | None = AUTO,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        variance_type: str | None = None,
        lower_order_final: bool = True,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        lambda_min_clipped: float = -float("inf"),
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_focused_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        data_std: float | None = None,
        tuned: str | None = None,
    ) -> None:
        choice("solver", solver, _solvers())
        if tuned is not None and solver != "evodiff":
            raise ValueError(f"a tuned plan is EVODiff's; got solver={solver!r}, tuned={tuned!r}")
        choice("prediction_type", prediction_type, KINDS)
        choice("timestep_type", timestep_type, ("discrete", "continuous", "integer"))
        if tuned is not None and timestep_type == "integer":
            raise ValueError(
                "the levels of a tuned plan lie between whole timesteps, which timestep_type='integer' asks for: leave "
                f"out one of them; got tuned={tuned!r}"
            )
        if isinstance(channel_dim, str):
            choice("channel_dim", channel_dim, (AUTO,))
        if sum(bool(self.config[grid]) for grid in GRIDS) > 1:
            raise ValueError(f"use one of {', '.join(GRIDS)}")
        check_values(self.config)
        if (shift_terminal or invert_sigmas) and not use_flow_sigmas:
            raise ValueError("shift_terminal and invert_sigmas are of flows: use_flow_sigmas=True")

        # What is off here by default is on elsewhere, so that who takes our config needs to read it.
        defaults = self.config.get("_use_default_values", ())
        if "clip_sample" in defaults:
            kept = [key for key in defaults if key != "clip_sample"]
            self.register_to_config(_use_default_values=kept)  # type: ignore[no-untyped-call]

        found = betas(self.config)
        self.betas = torch.tensor(found, dtype=torch.float32)
        self.alphas = 1.0 - self.betas
        # What the model was trained with, and what of it a run may have.
        table = None if use_flow_sigmas else table_of(found, data_std)
        self._trained: Discrete | Flow = table or Flow(data_std=data_std)
        self._schedule = part_of(table, lambda_min_clipped) if table else self._trained
        self._tuned = None if tuned is None else Tuned.load(tuned).on(self._schedule)
        known = table.alphas_cumprod if table else np.cumprod(1 - found)
        self.alphas_cumprod = torch.tensor(known, dtype=torch.float32)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        # Of diffusers' solvers; pipelines look whether they are empty. Ours keep theirs in _memory.
        self.model_outputs: list[Tensor | None] = [None, None]
        self.last_sample: Tensor | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._stages: Sequence[Stage] = ()
        self._set(training_levels(self.config, self._trained), None)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From the config of any scheduler of a diffusion or flow-matching model; see docs/diffusers.md.

        A keyword wins over the config, with what follows from it: another grid of the config's is off, and so is its
        dynamic shift if there is a `shift`. `use_flow_sigmas` says what a config of an unknown class is.

        Raises:
            ValueError: for a config that does not say which noise levels the model knows, asks for noise on the way, or
                is of a model that is distilled to steps of its own; for a keyword that this model has no use for.
            TypeError: for a keyword that is not ours. `shift` is `flow_shift`, as in the configs of flows.
        """
        if "shift" in kwargs:
            kwargs["flow_shift"] = kwargs.pop("shift")
        given = dict(kwargs)
        unknown = kwargs.keys() - parameters(cls).keys()
        if unknown and not return_unused_kwargs:
            told = ", ".join(f"{name}={kwargs[name]!r}" for name in sorted(unknown))
            raise TypeError(f"EVODiffScheduler has no option {told}: leave it out; `solver` names the method")
        if isinstance(config, dict):
            config = translated(config, EVODiffScheduler, kwargs.get("use_flow_sigmas"))
            if any(kwargs.get(grid) for grid in GRIDS):
                kwargs = {**dict.fromkeys(GRIDS, False), **kwargs}
            if "flow_shift" in kwargs:
                kwargs = {"use_dynamic_shifting": False, **kwargs}
                if "shift" in config:
                    config["shift"] = kwargs["flow_shift"]  # under the name that FlowMatchEuler reads it by
        made: Any = super().from_config(config, return_unused_kwargs, **kwargs)
        check_used(given, (made[0] if return_unused_kwargs else made).config, EVODiffScheduler)
        return made

    @property
    def step_index(self) -> int | None:
        """The place of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where the run begins, if the pipeline has said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at `timesteps[begin_index]`; for pipelines, after `set_timesteps`."""
        self._begin_index = begin_index
        if self.num_inference_steps is not None and self._step_index is None and 0 <= begin_index < len(self.timesteps):
            self._enter(begin_index, self._channels)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Plan a run, of `num_inference_steps` or over custom noise levels: a list, an array or a tensor of them.

        Args:
            sigmas: from noisy to clean, with or without the 0 at the end; sigma / alpha for models with betas,
                in (0, 1] and before the shift for flows.
            mu: the shift, for configs with use_dynamic_shifting; others ignore it.
            timesteps: what the model is told. Without sigmas, they follow from the timesteps, without shift.
        """
        own = None if self._tuned is None else self._tuned.grid
        self._set(levels(self.config, self._schedule, num_inference_steps, sigmas, mu, timesteps, own), device)
        self.num_inference_steps = len(self._nodes) - 1
        self._enter(0, self._channel_dim(4))
        asked = (*(stage.node for stage in self._stages), self._nodes[-1])
        if own is not None and asked != self._nodes:
            if timesteps is not None:
                raise ValueError(
                    "these levels are those of the tuned plan, which says what the model is told there: leave out "
                    f"timesteps, or the plan; got timesteps={timesteps!r}"
                )
            heard = tuple(self._schedule.node(node.time) for node in asked)
            self._set(told(self.config, self._schedule, heard), device)
            self._nodes = asked

    def _set(self, found: Levels, device: str | torch.device | None) -> None:
        config: Any = self.config
        self._nodes = self._told = found.nodes
        self.timesteps = self._clock = torch.from_numpy(found.timesteps).to(device)
        shown = [abs(node.sigma if isinstance(self._schedule, Flow) else node.nsr) for node in found.nodes]
        if config.invert_sigmas:
            shown = [1 - sigma for sigma in shown]
        self.sigmas = torch.tensor(shown, dtype=torch.float32)
        self._step_index = None
        self._begin_index = None

    def _enter(self, index: int, channels: int | None) -> None:
        """Plan the run that begins at this index, with no history."""
        nodes = self._nodes[index:]
        solver = self._tuned or _solver(self.config, isinstance(self._schedule, Flow), channels)
        self._stages = as_differences(planned(solver, self._schedule, nodes, len(nodes) - 1))
        self._start = self._next = index
        self._channels = channels
        self._memory, self._before = Memory(), Memory()

    def _channel_dim(self, rank: int) -> int | None:
        config: Any = self.config
        chosen: int | str | None = config.channel_dim
        if not _measures(SOLVERS[config.solver].solver):
            return None
        if not isinstance(chosen, str):
            return chosen
        return -1 if rank == 3 and isinstance(self._schedule, Flow) else 1

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> EVODiffSchedulerOutput | tuple[Tensor, Tensor]:
        """The latents at the next timestep, and the clean ones predicted, from the model's output at `sample`.

        With return_dict=False the clean ones are the solver's own: copy them before you change them.

        `timestep` says where the run begins, if nothing else has; later steps follow one another. `generator` draws
        the noise of stochastic solvers, unless `variance_noise`, unit Gaussian, is given. `eta` and
        `use_clipped_model_output` are DDIM's, which its pipeline passes on: they must be off.

        `per_token_timesteps` (B, L), for latents (B, L, C) of flows, is what the model was told for each token, no
        later than `timestep`. As in FlowMatchEuler, the output is then data - noise. A token that was told less has
        not come into the run yet, and stays as it is.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                "eta and use_clipped_model_output are options of DDIMScheduler; for noise on the way take "
                f"solver='ddpm' or 'sde-dpmpp-2m'; got {eta=!r}, {use_clipped_model_output=!r}"
            )
        if self._step_index is None:
            self._step_index = self._find(timestep) if self._begin_index is None else self._begin_index
        index = self._step_index
        self._before = memory = self._recall(index, sample)
        stage = self._stages[index - self._start]
        x = sample.float() if sample.element_size() < 4 else sample
        if memory.residue is not None:
            x = x + memory.residue
        waiting = None
        if per_token_timesteps is None:
            denoised = self._denoised(model_output, x, self._told[index])
        else:
            waiting, denoised = self._by_token(model_output, x, self._told[index], per_token_timesteps)
        before = x
        x, state = stage(memory.state, x, denoised)
        if stage.noise:
            if variance_noise is None:
                variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + variance_noise * stage.noise
        if waiting is not None:
            x = torch.where(waiting, before, x)
        out = x.to(sample.dtype)
        residue = None if out.dtype == x.dtype else (x - out).to(out.dtype)
        self._memory = Memory(state, residue, sample.shape)
        self._step_index = self._next = index + 1
        return EVODiffSchedulerOutput(out, denoised.clone()) if return_dict else (out, denoised)

    def _recall(self, index: int, sample: Tensor) -> Memory:
        """What the step at this index continues: the last step, the one before (a repeated step), or nothing."""
        if self.num_inference_steps is None:
            raise ValueError("there is no run to step in: call set_timesteps first")
        if not 0 <= index < len(self._nodes) - 1:
            raise ValueError(f"the run of {len(self._nodes) - 1} steps has no step {index}: call set_timesteps again")
        channels = self._channel_dim(sample.ndim)
        if channels == self._channels:
            if index == self._next and self._memory.shape in (None, sample.shape):
                return self._memory
            if index == self._next - 1 >= self._start and self._before.shape in (None, sample.shape):
                return self._before
        self._enter(index, channels)
        return self._memory

    def _denoised(self, output: Tensor, x: Tensor, node: Node) -> Tensor:
        config: Any = self.config
        if config.variance_type in ("learned", "learned_range") and output.shape[1] == 2 * x.shape[1]:
            output = output.chunk(2, dim=1)[0]
        if output.shape != x.shape:
            raise ValueError(
                f"model_output must have the shape of sample, {tuple(x.shape)}; got {tuple(output.shape)}. "
                "If its second half is a variance, use variance_type='learned_range'"
            )
        if config.invert_sigmas:
            output = -output
        if config.prediction_type == "sample":
            denoised = output.to(x.dtype, copy=True)  # the model may reuse its buffer
        else:
            denoised = to_denoised(config.prediction_type, output, x, node)
        if config.thresholding:
            limit = magnitude(denoised, config.dynamic_thresholding_ratio).clamp(min=1, max=config.sample_max_value)
            return denoised.clamp(-limit, limit) / limit
        if config.clip_sample:
            return denoised.clamp(-config.clip_sample_range, config.clip_sample_range)
        return denoised

    def _by_token(self, output: Tensor, x: Tensor, node: Node, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens wait, and the denoised latents, each token from the level that the model was told for it."""
        config: Any = self.config
        if not isinstance(self._schedule, Flow) or config.invert_sigmas or x.ndim != 3 or timesteps.ndim != 2:
            raise ValueError(
                "per_token_timesteps (B, L) are for latents (B, L, C) of flows without invert_sigmas; "
                f"got shapes {tuple(timesteps.shape)} and {tuple(x.shape)}"
            )
        own = timesteps.to(x.dtype)[..., None] / config.num_train_timesteps
        waiting = own < node.sigma - WITHIN
        denoised = self._denoised(-output, x, node)
        return waiting, torch.where(waiting, x + own * output, denoised)

    def _find(self, timestep: float | Tensor) -> int:
        """The index of a timestep: its place in `timesteps` if it is a view of that, else the nearest in value.

        Of equal ones the second, as everywhere in diffusers: the first has been skipped by whoever starts there.
        ValueError for one that is further off than half the longest step, such as a place in place of a timestep.
        """
        if isinstance(timestep, Tensor):
            if timestep.untyped_storage().data_ptr() == self._clock.untyped_storage().data_ptr():
                return int(timestep.storage_offset())
            timestep = timestep.flatten()[0].item()
        clock = self._clock.tolist()
        away = [abs(time - timestep) for time in clock]
        if not min(away) <= max((abs(s - t) / 2 for s, t in pairwise(clock)), default=math.inf):
            raise ValueError(
                f"timestep must be one of this run's, {clock[0]:g} to {clock[-1]:g}; got {timestep!r}: pass the "
                "scheduler's `timesteps`, not their places"
            )
        nearest = [i for i, distance in enumerate(away) if distance == min(away)]
        return nearest[:2][-1]

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The sample: the model is called on it as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: float | Tensor) -> Tensor:
        """alpha * original_samples + sigma * noise at `timesteps`; in a run with a begin index, at its next step.

        A timestep of the run is the run's level; any other is the one that the model was trained with.
        """
        x = original_samples.float() if original_samples.element_size() < 4 else original_samples
        if self._begin_index is not None:
            nodes = [self._nodes[self._begin_index if self._step_index is None else self._step_index]]
        else:
            planned = dict(zip(self._clock.tolist(), self._nodes, strict=False))
            times = timesteps.flatten().tolist() if isinstance(timesteps, Tensor) else [timesteps]
            nodes = [planned[time] if time in planned else level(self.config, self._trained, time) for time in times]
        levels = torch.tensor([node[1:] for node in nodes], dtype=x.dtype).to(x.device)
        alpha, sigma = levels.reshape(-1, 2, *[1] * (x.ndim - 1)).unbind(1)
        return (alpha * x + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as pipelines of flow models call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _solvers() -> list[str]:
    """The names of the solvers that fit: of one call a step, and of no statistics of the model."""
    solvers = {name: entry.solver for name, entry in SOLVERS.items()}
    return [name for name, s in solvers.items() if s.calls_per_step == 1 and not hasattr(s, "statistics")]


def _measures(solver: Solver) -> bool:
    """Whether it measures predictions, channel by channel or whole."""
    return getattr(solver, "mode", None) in RULES


def _solver(config: Any, flow: bool, channels: int | None) -> Solver:
    solver: Any = SOLVERS[config.solver].suited(flow)
    if _measures(solver) and solver.channel_dim is not None:
        solver = replace(solver, channel_dim=channels)
    if not config.lower_order_final:
        if hasattr(solver, "lower_order_final"):
            solver = replace(solver, lower_order_final=False)
        elif hasattr(solver, "final_order"):
            solver = replace(solver, final_order=getattr(solver, "order", HIGHEST))
    return solver  # type: ignore[no-any-return]
