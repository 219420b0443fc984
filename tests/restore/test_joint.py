"""The parts of a sum: of two Gaussians, their exact posterior."""

import pytest
import torch

import fewstep as fs
from fewstep import restore
from gaussians import Gaussian, normal, smooth

SIZE, NOISE, COUNT = 12, 0.1, 2000
SIGNAL, HAZE = smooth(SIZE, 1.0, 0.5, mean=0.2), smooth(SIZE, 5.0, 0.7, mean=-0.3)
Y = normal((1, SIZE), seed=4) * 0.6
SCHEDULE = fs.EDM(0.002, 80.0, data_std=0.6)


def exact(denoisers=(SIGNAL, HAZE)):
    """Of both parts, one after the other."""
    whole = Gaussian(torch.cat([d.mean for d in denoisers]), torch.block_diag(*[d.covariance for d in denoisers]))
    return whole.given(torch.cat([torch.eye(SIZE, dtype=torch.float64)] * len(denoisers), dim=1), Y[0], NOISE)


def drawn(denoisers=(SIGNAL, HAZE), count=COUNT, nfe=10, **options):
    denoiser = restore.joint(denoisers, Y, noise=NOISE, schedule=SCHEDULE, **options)
    noise = fs.unit_noise(range(count), (len(denoisers), SIZE), dtype=torch.float64)
    return fs.sample(denoiser, noise, nfe=nfe, schedule=SCHEDULE)


@pytest.mark.parametrize("denoisers", [(SIGNAL, HAZE), (SIGNAL, HAZE, smooth(SIZE, 2.0, 0.4))])
def test_samples_of_gaussian_parts_have_the_exact_posterior_in_ten_calls(denoisers):
    """Means within three standard errors, and 0.95 to 1.05 of the variance."""
    law, samples = exact(denoisers), drawn(denoisers, tolerance=1e-6).flatten(1)
    off = (samples.mean(0) - law.mean) / (law.covariance.diagonal() / COUNT).sqrt()
    assert float(off.square().mean().sqrt()) < 3
    assert 0.95 < float(samples.var(0).sum() / law.covariance.trace()) < 1.05
    # The parts are anticorrelated given their sum: as much as they should be.
    torch.testing.assert_close(
        torch.cov(samples.T), law.covariance, rtol=0, atol=6 * float(law.covariance.diagonal().max()) / COUNT**0.5
    )


def test_the_answer_is_the_posterior_mean_at_every_level():
    law = exact()
    denoiser = restore.joint((SIGNAL, HAZE), Y, noise=NOISE, schedule=SCHEDULE, tolerance=1e-12)
    x = normal((5, 2, SIZE), seed=5)
    for sigma in (0.05, 0.5, 5.0):
        # What is left of the residual, times up to the largest variance over that of the noise, 70.
        torch.testing.assert_close(denoiser(x, sigma).flatten(1), law(x.flatten(1), sigma), rtol=0, atol=1e-8)


def test_guidance_of_the_paper_is_biased_where_the_exact_one_is_not():
    """Their pi-GDM takes the parts' covariance for a multiple of the identity."""
    law = exact()

    def bias(method):
        away = drawn(method=method, count=500, nfe=20).flatten(1).mean(0) - law.mean
        return float(away.norm() / law.covariance.trace().sqrt())

    assert bias("moment") < 3 / 500**0.5
    assert bias("pigdm") > 3 / 500**0.5


def test_a_sample_does_not_depend_on_its_batch():
    """Where the denoisers' answers do not."""
    parts = [lambda x, t: x * (0.3 / (0.3 + t * t)), lambda x, t: (x / (1 + t)).tanh()]
    assert torch.equal(drawn(parts, count=4)[:1], drawn(parts, count=1))


def test_each_part_is_asked_once_a_call_with_what_is_its():
    asked = []

    def remembering(name, law):
        def denoiser(x, t):
            asked.append((name, x.clone()))
            return law(x.mul_(1), t)

        return denoiser

    denoiser = restore.joint(
        (remembering("signal", SIGNAL), remembering("haze", HAZE)), Y, noise=NOISE, schedule=SCHEDULE, method="proximal"
    )
    x = normal((3, 2, SIZE), seed=5)
    denoiser(x, 1.0)
    assert [name for name, _ in asked] == ["signal", "haze"]
    assert torch.equal(torch.stack([part for _, part in asked], 1), x)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="denoisers must be two functions or more"):
        restore.joint([SIGNAL], Y, noise=NOISE, schedule=SCHEDULE)
    two = (fs.as_denoiser(SIGNAL, "sample", fs.EDM()), fs.as_denoiser(HAZE, "sample", fs.VPLinear()))
    with pytest.raises(ValueError, match="a run has one schedule"):
        restore.joint(two, Y, noise=NOISE)
    with pytest.raises(ValueError, match="y must be finite"):
        restore.joint((SIGNAL, HAZE), Y * torch.nan, noise=NOISE, schedule=SCHEDULE)
    denoiser = restore.joint((SIGNAL, HAZE), Y, noise=NOISE, schedule=SCHEDULE)
    with pytest.raises(ValueError, match=r"x must (be 2 parts|have the shape)"):
        denoiser(normal((4, SIZE), seed=1), 1.0)


def test_a_sum_of_another_size_than_the_parts_is_told_of_y():
    class Model:
        shape, schedule = (SIZE,), SCHEDULE
        __call__ = staticmethod(SIGNAL)

    for shape, got in (
        ((1, SIZE + 1), r"\(1, 13\)$"),
        ((1, 2, SIZE), r"\(1, 2, 12\)$"),
        ((SIZE,), r".*: give y\[None\]$"),
    ):
        with pytest.raises(
            ValueError, match=rf"y must be a sum of parts.*\* = \(12,\), the shape of a part; got {got}"
        ):
            restore.joint((Model(), Model()), normal(shape, seed=1), noise=NOISE)
    denoiser = restore.joint((SIGNAL, HAZE), normal((1, SIZE + 1), seed=1), noise=NOISE, schedule=SCHEDULE)
    with pytest.raises(ValueError, match=rf"one of x and y, of shape \(1, {SIZE + 1}\), is of another size"):
        denoiser(normal((1, 2, SIZE), seed=1), 1.0)
