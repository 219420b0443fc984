"""The guide says nothing that the scheduler does not take."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from fewstep.integrations.diffusers import EVODiffScheduler
from fewstep.prediction import from_denoised
from fewstep.table import SOLVERS
from integrations.runs import ONE_CALL

GUIDE = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text(encoding="utf-8")
OPTIONS = inspect.signature(EVODiffScheduler.__init__).parameters


def test_the_calls_of_the_guide_are_possible():
    calls = [
        node
        for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "EVODiffScheduler.from_config"
    ]
    assert len(calls) >= 7
    for call in calls:
        EVODiffScheduler(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})


def test_the_options_of_the_guide_exist():
    rest = GUIDE.split("The rest are diffusers' options:")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", rest)
    assert len(named) >= 15
    assert set(named) <= set(OPTIONS)
    solvers = re.findall(r'"([a-z0-9-]+)"', GUIDE.split("## Options of its own")[1].split("##")[0])
    assert set(solvers) - {"auto"} <= set(SOLVERS)


def test_the_number_where_leading_timesteps_of_sdxl_begin():
    scheduler = EVODiffScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(5)
    assert f"begin at {scheduler.timesteps[0]} of 999 in 5 steps" in " ".join(GUIDE.replace("#", "").split())


WARNED = set(re.findall(r'"([a-z0-9-]+)"', GUIDE.split("Not every solver is safe")[1].split("\n\n")[0]))
LEVELS = (
    {"use_karras_sigmas": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_focused_sigmas": True},
)


@pytest.mark.parametrize("name", ONE_CALL)
def test_the_solvers_that_the_guide_warns_of_are_those_that_go_too_far(name):
    """By the spread of 4,000 samples, which is known to 1.1 %."""
    std, noise = 0.5, torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def spread(**levels):
        scheduler, x, draw = EVODiffScheduler(solver=name, **levels), noise, torch.Generator().manual_seed(1)
        scheduler.set_timesteps(5)
        for t, node in zip(scheduler.timesteps, scheduler._nodes, strict=False):
            denoised = node.alpha * std**2 / ((node.alpha * std) ** 2 + node.sigma**2) * x
            output = from_denoised(scheduler.config.prediction_type, denoised, x, node)
            x = scheduler.step(output, t, x, generator=draw).prev_sample
        return x.std().item() / std

    assert (max(spread(**levels) for levels in LEVELS) > 1.5) == (name in WARNED)
