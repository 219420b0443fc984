import pytest
import torch

import fewstep as fs
from fewstep.stream import residual

over_schedules = pytest.mark.parametrize(
    "schedule", [fs.EDM(), fs.VPLinear(), fs.VPCosine(), fs.Flow()], ids=lambda s: type(s).__name__
)


@over_schedules
@pytest.mark.parametrize("delta", [1.0, 0.5, 1.3])
def test_in_noise_it_is_delta_times_what_leads_back_to_the_reference(schedule, delta):
    """The paper's form: e_cfg = delta e' + scale (e - delta e'), e' = (x - alpha reference) / sigma."""
    x, reference, denoised = torch.randn(3, 4, 2, 3, dtype=torch.float64).unbind()
    t = torch.tensor([schedule.ramp(u) for u in (0.9, 0.5, 0.2, 0.1)], dtype=torch.float64)
    levels = torch.tensor([schedule.node(time) for time in t.tolist()], dtype=torch.float64)
    _, alpha, sigma = levels.T.reshape(3, 4, 1, 1)
    noise, back = (x - alpha * denoised) / sigma, (x - alpha * reference) / sigma
    mixed = delta * back + 1.6 * (noise - delta * back)
    got = fs.guided(lambda x, t: denoised, residual(reference, delta, schedule), 1.6)(x, t)
    want = (x - sigma * mixed) / alpha
    # A dozen roundings of numbers as large as x / alpha.
    torch.testing.assert_close(got, want, rtol=0, atol=16 * 2**-52 * 4 * float((x.abs() / alpha).max() + 4))


def test_one_reference_serves_all():
    x = torch.randn(3, 2, 4)
    assert torch.equal(residual(x[:1])(x, 1.0), x[:1].expand(3, 2, 4))


def test_delta_needs_alpha():
    with pytest.raises(ValueError, match=r"delta other than 1 needs the schedule, for alpha; got delta=0\.5"):
        residual(torch.zeros(1, 2), 0.5)
    with pytest.raises(ValueError, match=r"delta=0\.5 needs data in x; at time 1\.0 alpha is 0"):
        residual(torch.zeros(1, 2), 0.5, fs.Flow())(torch.zeros(1, 2), 1.0)
