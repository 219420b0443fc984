import math

import mpmath
import pytest
import torch

import fewstep as fs

SCHEDULE = fs.VPLinear()
NODES = fs.log_snr(SCHEDULE, 5, to_zero=True)


def phi_of(eta):
    return (lambda n: n * (mpmath.exp(n ** mpmath.mpf(0.3)) + 10)) if eta is None else (lambda n: n ** (1 + eta))


def by_hand(denoiser, x, nodes, order, eta, draws):
    """vp_k_order_taylor of the authors' code, its sums of 100 rectangles replaced by the integrals they stand for."""
    phi = phi_of(eta)
    past, slopes = [], []
    for i, (s, t, z) in enumerate(zip(nodes, nodes[1:], draws, strict=False)):
        m = denoiser(x, s.time)
        if t.sigma == 0:
            return m
        r = float(phi(t.nsr) / phi(s.nsr))
        y = r * x / s.alpha + (1 - r) * m
        d = t.nsr - s.nsr
        if past and order > 1:
            end, start = t.nsr, s.nsr
            whole = float(phi(end) * mpmath.quad(lambda n: 1 / phi(n), [end, start]))
            slopes.insert(0, (m - past[0]) / (s.nsr - nodes[i - 1].nsr))
            y = y + (d + whole) * slopes[0]
            if len(slopes) > 1 and order > 2:
                first = float(phi(end) * mpmath.quad(lambda n: n / phi(n), [end, start])) - start * whole
                bend = 2 * (slopes[0] - slopes[1]) / (s.nsr - nodes[i - 2].nsr)
                y = y + (d**2 / 2 + first) * bend
        past.insert(0, m)
        x = t.alpha * y + (t.alpha * math.sqrt(t.nsr**2 - (s.nsr * r) ** 2) * z if eta != 0 else 0.0)
    return x


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_authors_steps_with_the_same_noise(order, eta):
    def denoiser(x, time):
        return x / (1 + x * x + 4 * SCHEDULE.node(time).nsr ** 2) + 0.25

    start = torch.randn(2, 3, dtype=torch.float64)
    draws = torch.randn(5, 2, 3, dtype=torch.float64)
    want = by_hand(denoiser, start, NODES, order, eta, draws)
    got, state = start, None
    for stage, z in zip(fs.ERSDE(order, eta).plan(SCHEDULE, NODES), draws, strict=True):
        got, state = stage(state, got, denoiser(got, stage.node.time))
        got = got + stage.noise * z
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_order_1_of_the_reverse_sde_is_ddpm():
    ours, theirs = fs.ERSDE(1, 1.0).plan(SCHEDULE, NODES), fs.DDIM(eta=1.0).plan(SCHEDULE, NODES)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.move.scale, *a.move.weights, a.noise) == pytest.approx(
            (b.move.scale, *b.move.weights, b.noise), rel=1e-12, abs=1e-15
        )


def test_from_pure_noise_a_flow_takes_the_limit():
    stage = fs.ERSDE().plan(fs.Flow(), fs.time_uniform(fs.Flow(), 4))[0]
    assert (stage.move.scale, stage.move.weights, stage.noise) == (0.0, (0.25,), 0.75)


def test_any_level_that_a_schedule_has_is_within_floating_point():
    wide = fs.EDM(1e-15, 1e15)
    for stage in fs.ERSDE().plan(wide, fs.log_snr(wide, 6, to_zero=False)):
        assert all(map(math.isfinite, (stage.move.scale, *stage.move.weights, stage.noise)))


def test_refuses():
    with pytest.raises(ValueError, match="eta must be None or finite and at least 0; got eta=-1"):
        fs.ERSDE(eta=-1)
    with pytest.raises(ValueError, match="needs nodes of falling noise; to invert, use eta=0"):
        fs.ERSDE().plan(SCHEDULE, NODES[::-1][1:])
