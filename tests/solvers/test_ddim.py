import pytest
import torch

import fewstep as fs
from golden import GRIDS, assert_matches, entries

EULER = [k for k in entries("zju_diff_solvers") if k.startswith("euler") and "afs" not in k and "time_uniform" not in k]


@pytest.mark.parametrize("key", EULER)
def test_equals_euler_of_diff_sampler(key):
    facts = entries("zju_diff_solvers")[key]
    closing = bool(facts["denoise_to_zero"])
    nodes = GRIDS[facts["schedule"]](fs.EDM(), facts["nodes"] - 1 + closing, to_zero=closing)
    assert_matches("zju_diff_solvers", key, fs.DDIM(), fs.EDM(), nodes)


def test_one_call_to_zero_is_the_denoised():
    denoised = torch.randn(2, 3, 4, 4)
    got = fs.sample(lambda x, t: denoised, torch.randn(2, 3, 4, 4), solver=fs.DDIM(), grid=[80.0, 0.0])
    assert torch.equal(got, denoised)
