"""Plans rewritten so that corrections are differences to x."""

import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from fewstep.integrations.differences import as_differences
from fewstep.solvers.core.base import LinearStage
from fewstep.table import SOLVERS

ONE_CALL = {name: entry for name, entry in SOLVERS.items() if entry.solver.calls_per_step == 1 and not entry.stochastic}
NODES = fs.log_snr(fs.EDM(0.05, 5.0), 9, to_zero=False)
PROBLEM = gaussian()
DENOISER = PROBLEM.denoiser(fs.EDM())


def run(stages, edit=None):
    x, state = torch.randn(2, *PROBLEM.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5, None
    for i, stage in enumerate(stages):
        x, state = stage(state, x, DENOISER(x, stage.node.time))
        if i == 4 and edit is not None:
            x = x + edit
    return x


@pytest.mark.parametrize("name", ONE_CALL)
def test_the_run_is_the_same(name):
    stages = ONE_CALL[name].solver.plan(fs.EDM(), NODES)
    # Nine steps of roundings of numbers of size 5, some of them differences of weights up to 10 in size.
    torch.testing.assert_close(run(as_differences(stages)), run(stages), rtol=0, atol=9 * 10 * 5 * 2**-52)


@pytest.mark.parametrize("name", ["unipc-3", "unipc-2-bh1", "re-implicit"])
def test_an_edit_between_calls_survives_a_corrector(name):
    """As far as the rest of the run carries it: as in DDIM, where x is what goes on. A plain plan forgets it."""
    edit = torch.full(PROBLEM.shape, 0.5, dtype=torch.float64)
    plain = ONE_CALL[name].solver.plan(fs.EDM(), NODES)
    stages = as_differences(plain)
    assert any(stage.hold for stage in plain)
    assert not any(stage.hold for stage in stages)
    moved = (run(stages, edit) - run(stages)).norm()
    expected = (run(fs.DDIM().plan(fs.EDM(), NODES), edit) - run(fs.DDIM().plan(fs.EDM(), NODES))).norm()
    # Within a factor of two: the answer of the one call that saw the edit enters each method with another weight.
    assert expected / 2 < moved < expected * 2


def test_a_held_step_of_several_calls_is_left_alone():
    stages = fs.Heun().plan(fs.EDM(), NODES)
    assert as_differences(stages) == stages
    assert all(isinstance(stage, LinearStage) for stage in stages)
