"""What the prior foretells is what the solver leaves on samples of the prior."""

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.calibration import foretold, prior_run
from fewstep.sampling import drive, plan
from fewstep.schedule import DATA_STD

DRAWS = 4000


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=repr)
@pytest.mark.parametrize("nfe", [5, 10])
def test_foretold_error_is_that_of_draws_from_the_prior(schedule, nfe):
    paths, nodes, _ = prior_run(schedule, nfe)
    stages = plan(schedule, fs.EVODiff(), nfe=nfe)[1]
    modes, count = paths.state[0].shape
    # Independent normals for each mode and draw; a run of all of them is one sample of the solver.
    z = np.random.default_rng(0).standard_normal((modes, count, DRAWS))
    drawn = [np.einsum("mk,mkd->md", state, z) for state in paths.state]
    extra = [np.einsum("mk,mkd->md", paths.answer(i, 0 * s).reshape(s.shape), z) for i, s in enumerate(paths.state)]
    place = {node.time: i for i, node in enumerate(nodes)}

    def denoiser(x, t):
        i = place[t]
        y = x.numpy().reshape(modes, DRAWS) / nodes[i].alpha
        return torch.from_numpy(paths.wiener[i] * y + extra[i] * DATA_STD).reshape(1, -1)

    x = torch.from_numpy(drawn[0]).reshape(1, -1) * (DATA_STD * nodes[0].alpha)
    *_, last = drive(denoiser, x, nodes[0], stages, x.dtype, lambda node: x, differentiable=False)
    wrong = last.x.numpy().reshape(modes, DRAWS) / nodes[-1].alpha - drawn[-1] * DATA_STD
    left = float(np.sqrt((wrong**2).mean(1).sum()))
    # 15 modes of 4,000 draws: a variance dominated by a few modes is within 4 / sqrt(4000) of its mean.
    assert left == pytest.approx(foretold(schedule, nfe), rel=4 / DRAWS**0.5)
