"""The covariance of images by cosines is that of images which have it."""

import pytest
import torch

from benchmarks.restore.exact import drawn, gaussian
from fewstep.restore import Spectrum
from fewstep.schedule import EDM, Flow, Node

LAW = gaussian()


def test_that_of_samples_is_that_of_their_law():
    count = 4000
    found = Spectrum.of(drawn(LAW, count, seed=0))
    # A variance of N samples is known to sqrt(2 / N); the largest of 64 errors is within four of these.
    assert torch.allclose(found.variances.flatten(), LAW.variances[0], rtol=4 * (2 / count) ** 0.5)


def test_colours_are_found_apart():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 3, 4, 4, generator=draw, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0])[:, None, None]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=torch.float64)).Q
    found = Spectrum.of(torch.einsum("cd,ndhw->nchw", turn, x))
    assert torch.allclose(found.variances.mean((1, 2)), torch.tensor([0.01, 1.0, 9.0]).double(), rtol=0.05)


@pytest.mark.parametrize("node", [EDM().node(0.7), Flow().node(0.7), Flow().node(1.0), Node(0.5, 0.6, 0.8)])
def test_the_conditional_covariance_is_that_of_gaussian_data(node):
    spectrum = Spectrum(LAW.variances.reshape(LAW.shape), torch.ones(1, 1))
    v = torch.randn(5, *LAW.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (values,), (basis,) = LAW.variances, LAW.vectors
    covariance = (basis * values) @ basis.T
    seen = node.alpha**2 * covariance + node.sigma**2 * torch.eye(len(values), dtype=torch.float64)
    left = covariance - node.alpha**2 * covariance @ torch.linalg.solve(seen, covariance)
    assert torch.allclose(spectrum.conditional(v, node).flatten(1), v.flatten(1) @ left, rtol=0, atol=1e-12)


def test_what_it_is_not_of_is_refused():
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\) with N of 2 or more"):
        Spectrum.of(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="images must differ"):
        Spectrum.of(torch.rand(1, 1, 8, 8).expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="images must be finite"):
        Spectrum.of(torch.full((3, 1, 8, 8), torch.nan))
    with pytest.raises(TypeError, match=r"images must be floating point; got torch\.uint8"):  # 0 to 255: not its units
        Spectrum.of(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor; got list"):
        Spectrum.of([torch.zeros(1, 8, 8)] * 2)
    with pytest.raises(ValueError, match=r"spectrum is of images \(1, 8, 8\); got x of \(3, 8, 8\)"):
        Spectrum(LAW.variances.reshape(LAW.shape), torch.ones(1, 1)).conditional(
            torch.zeros(1, 3, 8, 8), EDM().node(1.0)
        )
