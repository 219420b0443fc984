"""Samples given a measurement are those of the posterior, where it is known: Gaussian data."""

import pytest
import torch

import fewstep as fs
from benchmarks.restore.exact import NOISES, conditioned, drawn, gaussian, operators
from fewstep.restore import posterior
from fewstep.schedule import EDM

LAW = gaussian()
COUNT = 500
MODEL = fs.as_denoiser(lambda x, t: LAW.denoised(x, EDM().node(t)), "sample", EDM())


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ["mask", "downsampling", "blur"])
def test_moment_matching_samples_gaussian_posteriors_in_ten_calls(name, noise):
    operator = operators()[name]
    clean = operator.A(drawn(LAW, 1, seed=3))
    y = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4), dtype=clean.dtype)
    exact = conditioned(LAW, operator, y, noise).moments()
    x = fs.unit_noise(range(COUNT), LAW.shape, dtype=torch.float64)
    samples = fs.sample(posterior(MODEL, operator, y, noise=noise), x, nfe=10).flatten(1)
    total = exact.covariance.trace()
    # The squared error of the mean of COUNT samples has the mean total / COUNT: within 3 standard errors.
    assert float((samples.mean(0) - exact.mean).square().sum()) < 9 * float(total) / COUNT
    # The aim, 5 %, and what COUNT samples leave: of a sum of variances v_i, sqrt(2 sum v_i^2 / COUNT), three of them.
    values = torch.linalg.eigvalsh(torch.as_tensor(exact.covariance))
    spread = float((2 * values.square().sum() / COUNT).sqrt() / total)
    assert abs(float(samples.var(0).sum() / total) - 1) < 0.05 + 3 * spread
