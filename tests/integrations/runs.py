"""The same run pushed by fewstep and pulled by diffusers' loop."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

import fewstep as fs
from fewstep.prediction import from_denoised, to_denoised
from fewstep.table import SOLVERS

# Solvers of one call a step and of no statistics, in the form that starts at a flow's alpha = 0.
ONE_CALL = [name for name, e in SOLVERS.items() if e.solver.calls_per_step == 1 and not hasattr(e.solver, "statistics")]
DETERMINISTIC = [name for name in ONE_CALL if not SOLVERS[name].stochastic]


def denoise(x, node):
    return x / (1 + x * x + 4 * node.sigma**2) + 0.25


def network(scheduler):
    """A network of the scheduler's prediction type whose denoised image is `denoise`."""
    kind = scheduler.config.prediction_type
    sign = -1 if scheduler.config.invert_sigmas else 1
    nodes = dict(zip(scheduler.timesteps.tolist(), scheduler._nodes, strict=False))

    def output(x, t):
        node = nodes[t.item()]
        return sign * from_denoised(kind, denoise(x, node), x, node)

    return output


def pull(scheduler, x, start=0, **options):
    """diffusers' loop, from timesteps[start]."""
    model = network(scheduler)
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(model(x, t), t, x, return_dict=False, **options)[0]
    return x


def solver_for(scheduler, x):
    """The solver that the scheduler's config names, for latents like x."""
    flow = scheduler.config.use_flow_sigmas
    entry = SOLVERS[scheduler.config.solver]
    solver = entry.on_flow if flow else entry.solver
    packed = flow and x.ndim == 3 and getattr(solver, "mode", None) in ("published", "paper") and solver.channel_dim
    return replace(solver, channel_dim=-1) if packed else solver


def push(scheduler, x, start=0, solver=None):
    nodes = scheduler._nodes[start:]
    by_time = {node.time: node for node in nodes}
    solver = solver or solver_for(scheduler, x)
    return fs.integrate(lambda x, t: denoise(x, by_time[t]), x, nodes, solver=solver, schedule=scheduler._schedule)


def record(pipe):
    """The (model_output, timestep, sample, next sample) of every step that the pipeline makes."""
    steps = []
    step = pipe.scheduler.step

    def recorded(model_output, timestep, sample, *args, **kwargs):
        out = step(model_output, timestep, sample, *args, **kwargs)
        after = out[0] if isinstance(out, tuple) else out.prev_sample
        steps.append((model_output.clone(), float(timestep), sample.clone(), after.clone()))
        return out

    pipe.scheduler.step = recorded
    return steps


def assert_is_push_run(scheduler, steps, atol=1e-5):
    """What the pipeline did is what fewstep does with the same answers of the model, relative to the largest value."""
    start = scheduler.timesteps.tolist().index(pytest.approx(steps[0][1], rel=1e-6))
    nodes = scheduler._nodes[start:]
    answers = iter(steps)
    asked = []

    def denoiser(x, t):
        output, _, sample, _ = next(answers)
        asked.append((x, sample))
        (node,) = [node for node in nodes if node.time == t]
        denoised = to_denoised(scheduler.config.prediction_type, output, sample, node).to(x.dtype)
        most = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
        return denoised if most is None else denoised.clamp(-most, most)

    first = steps[0][2]
    solver = solver_for(scheduler, first)
    states = list(
        islice(fs.trajectory(denoiser, first, nodes, solver=solver, schedule=scheduler._schedule), len(steps))
    )
    for (x, sample), state, (_, _, _, after) in zip(asked, states, steps, strict=False):
        size = max(1.0, float(sample.abs().max()))
        torch.testing.assert_close(x, sample, rtol=0, atol=atol * size)
        torch.testing.assert_close(state.x, after, rtol=0, atol=atol * size)
    assert len(states) == len(steps)
    assert torch.isfinite(torch.stack([after for *_, after in steps])).all()
