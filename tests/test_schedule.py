import copy
import dataclasses
import math
import pickle
import sys

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fewstep import EDM, Discrete, Flow, Node, Schedule, VPCosine, VPLinear
from fewstep.schedule import ZERO_SNR_FLOOR
from golden import arrays, sd_table

EPS = sys.float_info.epsilon
SD = sd_table()
PRESERVING = [VPLinear(), VPLinear(beta_min=0.5, beta_max=8.0), VPCosine(), VPCosine(s=0.1), SD]
SCHEDULES = [EDM(), *PRESERVING, Flow(), Flow(shift=3.0)]
# Half log-SNRs that a time of the clock can express: log(1 - t) ends near -36 where the clock ends at 1.
REACH = {EDM: (-700.0, 700.0), VPLinear: (-300.0, 300.0), VPCosine: (-30.0, 300.0), Flow: (-30.0, 300.0)}
ends = {s: REACH.get(type(s), (s.lam_range[0], 300.0)) for s in SCHEDULES}


def name(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Schedule) else None


over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
over_preserving = pytest.mark.parametrize("schedule", PRESERVING, ids=name)


def ulps(schedule: Schedule, time: float, count: int) -> float:
    """`count` roundings of the clock: relative to its distance from clean data."""
    return count * EPS * (abs(time) - min(schedule.t_clean, 0.0))


def on_clock(schedule: Schedule, time: float) -> float:
    top = schedule.t_max if isinstance(schedule, Discrete) else 1.0 if REACH[type(schedule)][0] == -30 else math.inf
    return min(max(time, schedule.t_clean), top)


def times(schedule: Schedule, low: float = 1e-12) -> st.SearchStrategy[float]:
    """Distances from clean data over many decades, up to the noisy end."""
    span = schedule.t_max - schedule.t_clean
    return st.floats(math.log(low), 0.0).map(lambda u: on_clock(schedule, schedule.t_clean + span * math.exp(u)))


@over_schedules
@given(data=st.data())
def test_time_at_finds_the_time_to_a_few_roundings_of_the_clock(schedule, data):
    lam = data.draw(st.floats(*ends[schedule]))
    time, rounding = schedule.time_at(lam), 8 * EPS * (1 + abs(lam))
    late, early = (on_clock(schedule, time + ulps(schedule, time, k)) for k in (8, -8))
    assert schedule.node(late).lam - rounding <= lam <= schedule.node(early).lam + rounding


@over_schedules
@given(data=st.data())
def test_time_at_inverts_node_to_a_few_roundings_of_lam(schedule, data):
    time = data.draw(times(schedule))
    lam = schedule.node(time).lam
    assume(lam > -math.inf)
    rounding = 8 * EPS * (1 + abs(lam))
    early, late = schedule.time_at(lam + rounding), schedule.time_at(lam - rounding)
    slack = ulps(schedule, time, 8)
    assert early - slack <= time <= late + slack


@over_schedules
@given(data=st.data())
def test_noise_rises_with_time(schedule, data):
    # Discrete counts from -1: nearer to it than 1e-5 of the clock, a step of 1e-9 is less than a rounding.
    time = data.draw(times(schedule, low=1e-5))
    earlier = schedule.t_clean + (time - schedule.t_clean) * (1 - 1e-9)
    a, b = schedule.node(earlier), schedule.node(time)
    assert a.time < b.time
    assert a.lam > b.lam
    assert a.nsr < b.nsr


@over_preserving
@given(data=st.data())
def test_variance_is_preserved(schedule, data):
    _, alpha, sigma = schedule.node(data.draw(times(schedule, low=1e-300)))
    assert alpha**2 + sigma**2 == pytest.approx(1, rel=0, abs=8 * EPS)


@given(time=st.floats(0, 1))
def test_flow_is_the_line_from_data_to_noise(time):
    assert Flow().node(time) == (time, 1 - time, time)


@given(time=st.floats(0, 1e300))
def test_edm_clock_is_sigma(time):
    assert EDM().node(time) == (time, 1.0, time)


def exact(schedule: Schedule, time: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """alpha and sigma by the definition in the schedule's docstring, to 340 digits: enough for 1 - alpha^2."""
    t = mpmath.mpf(time)
    match schedule:
        case VPLinear():
            slope = mpmath.mpf(schedule.beta_max) - schedule.beta_min
            alpha = mpmath.exp(-(t**2) * slope / 4 - t * schedule.beta_min / 2)
        case VPCosine():
            alpha = mpmath.cos(mpmath.pi / 2 * (t + schedule.s) / (1 + mpmath.mpf(schedule.s)))
            alpha /= mpmath.cos(mpmath.pi / 2 * schedule.s / (1 + mpmath.mpf(schedule.s)))
        case Discrete():
            table = (1.0, *schedule.alphas_cumprod)
            below = min(int(mpmath.floor(t + 1)), len(table) - 2)
            part = t + 1 - below
            alpha = mpmath.mpf(table[below]) ** ((1 - part) / 2) * mpmath.mpf(table[below + 1]) ** (part / 2)
    return alpha, mpmath.sqrt(1 - alpha**2)


@over_preserving
@given(data=st.data())
def test_alpha_and_sigma_keep_their_digits_at_every_distance_from_clean_data(schedule, data):
    # Down to 1e-150, where sigma^2 = 1 - alpha^2 would have lost all its digits 130 decades before. The clock of
    # Discrete is counted from -1, so its times near clean data are themselves rounded to EPS.
    time = data.draw(times(schedule, low=1e-12 if isinstance(schedule, Discrete) else 1e-150))
    node = schedule.node(time)
    with mpmath.workdps(340):
        alpha, sigma = exact(schedule, time)
        # exp magnifies the rounding of its argument by the argument.
        assert abs(node.alpha / alpha - 1) <= 8 * EPS * (1 - mpmath.log(alpha))
        assert abs(node.sigma / sigma - 1) <= 8 * EPS


@over_schedules
def test_clean_data_has_no_noise(schedule):
    node = schedule.node(schedule.t_clean)
    assert node == (schedule.t_clean, 1.0, 0.0)
    assert (node.lam, node.nsr) == (math.inf, 0.0)
    assert schedule.time_at(math.inf) == schedule.t_clean


@pytest.mark.parametrize("schedule", [VPCosine(), VPCosine(s=0.1), VPCosine(s=0.5), Flow()], ids=name)
def test_pure_noise_is_at_time_1(schedule):
    node = schedule.node(1.0)
    assert node.alpha == 0.0
    assert node.sigma == pytest.approx(1, rel=4 * EPS)
    assert (node.lam, node.nsr) == (-math.inf, math.inf)
    for lam in (-800.0, -math.inf):
        assert 1 - 2 * EPS <= schedule.time_at(lam) <= 1


@over_schedules
def test_time_at_stays_on_the_clock_for_data_cleaner_than_double_precision(schedule):
    times = [schedule.time_at(lam) for lam in (15.0, 18.0, 19.0, 40.0, 400.0, 800.0)]
    assert times == sorted(times, reverse=True)
    assert schedule.node(times[-1]).time >= schedule.t_clean


@over_schedules
def test_lam_range_is_finite_and_within_the_trained_range(schedule):
    noisy, clean = schedule.lam_range
    assert -math.inf < noisy < clean < math.inf
    assert schedule.node(schedule.t_max).lam <= noisy
    assert clean <= schedule.node(schedule.t_min).lam
    if not isinstance(schedule, Flow):
        assert (noisy, clean) == (schedule.node(schedule.t_max).lam, schedule.node(schedule.t_min).lam)


def test_flow_range_ends_at_one_part_in_a_thousand():
    flow = Flow()
    assert [flow.time_at(lam) for lam in flow.lam_range] == pytest.approx([0.999, 0.001], rel=8 * EPS)


@over_schedules
def test_ramp_runs_over_the_clock(schedule):
    ramp = [schedule.ramp(i / 64) for i in range(65)]
    assert (ramp[0], ramp[-1]) == (schedule.t_min, schedule.t_max)
    assert ramp == sorted(set(ramp))


@given(shift=st.floats(0.1, 20), u=st.floats(0.01, 0.99))
def test_flow_shift_multiplies_the_noise_to_signal_ratio(shift, u):
    flow = Flow(shift)
    # sigma / (1 - sigma) loses 1 / (1 - sigma) of its digits.
    loss = 1 / flow.node(flow.ramp(u)).alpha
    assert flow.node(flow.ramp(u)).nsr == pytest.approx(shift * u / (1 - u), rel=8 * EPS * loss)


@given(u=st.floats(0, 1))
def test_flow_without_shift_is_its_clock(u):
    assert Flow().ramp(u) == u


@given(beta_min=st.floats(0.01, 1), slope=st.floats(0.1, 30), time=st.floats(1e-6, 1))
def test_vp_linear_integrates_its_beta(beta_min, slope, time):
    assume(beta_min + slope / 2 > 0.25)  # it ends in noise
    schedule = VPLinear(beta_min, beta_min + slope)
    beta = beta_min + time * (schedule.beta_max - beta_min)
    area = time * (beta_min + beta) / 2  # the trapezoid, exact for a line
    assert -2 * math.log(schedule.node(time).alpha) == pytest.approx(area, rel=8 * EPS, abs=4 * EPS)


def test_ddpm_table_tends_to_vp_linear():
    n, schedule = 1000, VPLinear()
    beta = (0.1 + (np.arange(n) + 0.5) / n * 19.9) / n  # the midpoint rule is exact for a line
    table = Discrete(np.cumprod(1 - beta))
    for i in range(n):
        drop = math.log(schedule.node((i + 1) / n).alpha / table.node(i).alpha)
        # -log(1 - b) - b lies between b^2 / 2 and b^2 / 2 / (1 - b); log alpha is half of it. n roundings of cumprod.
        half = (beta[: i + 1] ** 2).sum() / 4
        assert half - n * EPS <= drop <= half / (1 - beta[i]) + n * EPS


def test_discrete_equals_its_table_at_integers():
    table = arrays("problem")["note_sd_alphas_cumprod"]
    for i, a in enumerate(table.tolist()):
        node = SD.node(i)
        assert node.alpha**2 == pytest.approx(a, rel=4 * EPS * (1 - math.log(a)))
        assert node.sigma**2 == pytest.approx(1 - a, rel=8 * EPS)


@given(i=st.integers(-1, 998), part=st.floats(0, 1))
def test_discrete_interpolates_log_alpha(i, part):
    a, b = math.log(SD.node(i).alpha), math.log(SD.node(i + 1).alpha)
    time = i + part
    got = math.log(SD.node(time).alpha)
    assert got == pytest.approx(a + (time - i) * (b - a), rel=0, abs=8 * EPS)


def test_discrete_is_clean_at_index_minus_1_and_noisiest_last():
    assert SD.node(-1) == (-1.0, 1.0, 0.0)
    assert (SD.t_min, SD.t_max) == (0.0, 999.0)
    assert SD.node(999).alpha ** 2 == pytest.approx(SD.alphas_cumprod[-1], rel=32 * EPS)


def test_discrete_reads_zero_terminal_snr_as_the_floor():
    zero, floor = (Discrete([*SD.alphas_cumprod[:-1], last]) for last in (0.0, ZERO_SNR_FLOOR))
    assert zero == floor
    assert zero.node(999).alpha == pytest.approx(2.0**-12, rel=64 * EPS)
    assert zero.node(998) == SD.node(998)


@pytest.mark.parametrize("betas", [(0.0015, 0.0195, 1000), (0.00085, 0.012, 4000)])
def test_discrete_reads_zero_terminal_snr_as_less_than_the_entry_before(betas):
    first, last, size = betas
    roots = np.sqrt(np.cumprod(1 - np.linspace(first**0.5, last**0.5, size) ** 2))
    table = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2  # Lin et al. (2023), Algorithm 1
    assert 0 == table[-1] < table[-2] < ZERO_SNR_FLOOR
    assert Discrete(table).alphas_cumprod[-1] == table[-2] / 4


@given(falls=st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=40))
def test_discrete_ends_are_on_the_clock_and_beyond_them_is_not(falls):
    schedule = Discrete(np.cumprod(1 - np.array([*falls, 0.5])))  # it ends in noise
    noisy, clean = schedule.lam_range
    # One rounding of lam, 8 EPS (1 + |lam|), is worth this much of a table step of at least 1e-4 / 2 in log alpha.
    rounding = 8 * EPS * (1 + abs(noisy) + abs(clean)) / 5e-5
    assert schedule.node(schedule.time_at(noisy)).time == pytest.approx(schedule.t_max, abs=rounding)
    assert schedule.time_at(clean) == pytest.approx(schedule.t_min, abs=rounding)
    with pytest.raises(ValueError, match=r"^time must .*Discrete"):
        schedule.node(schedule.time_at(noisy - 0.1))


def test_discrete_takes_any_sequence_of_numbers():
    table = [0.75, 0.5, 0.25]
    for same in (tuple(table), np.array(table), torch.tensor(table), torch.tensor(table).half()):
        assert Discrete(same) == Discrete(table)
        assert hash(Discrete(same)) == hash(Discrete(table))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(sigma_min=0), "sigma_min=0,"),
        (lambda: EDM(sigma_min=-1.0), "sigma_min=-1.0"),
        (lambda: EDM(sigma_min=100.0), "sigma_min=100.0, sigma_max=80.0"),
        (lambda: EDM(sigma_max=math.inf), "sigma_max=inf"),
        (lambda: EDM(sigma_max=math.nan), "sigma_max=nan"),
        (lambda: VPLinear(beta_min=0), "beta_min=0,"),
        (lambda: VPLinear(beta_min=30.0), "beta_min=30.0, beta_max=20.0"),
        (lambda: VPLinear(beta_max=math.inf), "beta_max=inf"),
        (lambda: VPLinear(beta_max=math.nan), "beta_max=nan"),
        (lambda: VPLinear(t_min=0.0), "t_min=0.0"),
        (lambda: VPLinear(t_min=2.0), "t_min=2.0, t_max=1.0"),
        (lambda: VPLinear(t_max=math.inf), "t_max=inf"),
        (lambda: VPLinear(t_max=math.nan), "t_max=nan"),
        (lambda: VPCosine(s=0), "s=0"),
        (lambda: VPCosine(s=math.nan), "s=nan"),
        (lambda: VPCosine(s=math.inf), "s=inf"),
        (lambda: VPCosine(t_min=0.0), "t_min=0.0"),
        (lambda: VPCosine(t_max=1.0), "t_max=1.0"),
        (lambda: VPCosine(t_max=math.nan), "t_max=nan"),
        (lambda: Flow(shift=0), "shift=0"),
        (lambda: Flow(shift=-3.0), "shift=-3.0"),
        (lambda: Flow(shift=math.nan), "shift=nan"),
        (lambda: Flow(shift=math.inf), "shift=inf"),
        (lambda: Discrete([]), "alphas_cumprod needs at least 2 entries; got 0"),
        (lambda: Discrete([0.5]), "alphas_cumprod needs at least 2 entries; got 1"),
        (lambda: Discrete([1.0, 0.5]), "alphas_cumprod .* got 1.0 then 1.0 at index 0"),
        (lambda: Discrete([0.5, 0.9]), "alphas_cumprod .* got 0.5 then 0.9 at index 1"),
        (lambda: Discrete([0.5, 0.5]), "alphas_cumprod .* got 0.5 then 0.5 at index 1"),
        (lambda: Discrete([0.5, math.nan]), "alphas_cumprod .* got 0.5 then nan at index 1"),
        (lambda: Discrete([0.5, 0.0, 0.0]), "alphas_cumprod .* got 0.5 then 0.0 at index 1"),
        (lambda: Discrete([0.5, -0.1]), "alphas_cumprod .* got 0.5 then -0.1 at index 1"),
    ],
)
def test_bad_arguments_are_named_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@over_schedules
def test_times_off_the_clock_are_refused(schedule):
    off = [math.nan, math.inf, -math.inf, schedule.t_clean - 1e-9]
    if isinstance(schedule, VPCosine | Discrete | Flow):
        off.append(on_clock(schedule, math.inf) + 1e-9)
    for time in off:
        with pytest.raises(ValueError, match=rf"^time must .* for {type(schedule).__name__}.*; got {time!r}$"):
            schedule.node(time)


@over_schedules
def test_schedules_are_frozen_values(schedule):
    for same in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), dataclasses.replace(schedule)):
        assert same == schedule
        assert hash(same) == hash(schedule)
        assert same.node(schedule.t_max) == schedule.node(schedule.t_max)
    field = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, field, 1.0)


def test_different_schedules_are_not_equal():
    assert len(set(SCHEDULES)) == len(SCHEDULES)
    assert Discrete([0.5, 0.25]) != Discrete([0.5, 0.2])


@given(alpha=st.floats(1e-100, 1), sigma=st.floats(1e-100, 1e100))
def test_node_lam_is_minus_log_nsr(alpha, sigma):
    node = Node(0.5, alpha, sigma)
    assert node.lam == pytest.approx(-math.log(node.nsr), rel=4 * EPS, abs=4 * EPS)


# Tables that were meant otherwise, and numbers that leave the range of floats


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VPLinear(1e-4, 0.02),
            r"betas 0\.0001 to 0\.02 must end in noise.*sigma / alpha is 0\.1 .*VPLinear\(0\.1",
        ),
        (lambda: VPLinear(1e-4, 0.02, t_max=2.0), "must end in noise"),
        (
            lambda: Discrete(np.linspace(0.9999, 0.98, 1000)),
            "sigma / alpha is 0.14 .*look like alphas, 1 - beta: pass their",
        ),
        (lambda: Discrete([0.99, 0.98]), "pass the cumulative products of 1 - beta over all steps"),
        (lambda: VPLinear(t_max=1000.0), r"nothing of the data left at time 1000\.0: its clock runs from 0 to 1"),
        (lambda: VPLinear().node(999), r"at time 999\.0.*clock of a table, Discrete\(alphas_cumprod\)"),
        (lambda: EDM(1e-300, 1e300), "sigmas in .1e-15, 1e.15., whose squares float32 holds; got sigma_min=1e-300"),
        (lambda: EDM(0.002, 1e16), "measure the data in other units"),
        (lambda: VPLinear(20.0, 0.1), "0 < beta_min <= beta_max"),
    ],
)
def test_what_was_probably_meant_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule", [VPLinear(1.0, 1.0), VPLinear(1.0, 1.0, t_max=10.0), VPLinear(0.01, 10.0)], ids=repr
)
def test_constant_betas_and_short_ranges_are_schedules(schedule):
    """dx = -beta x / 2 dt + sqrt(beta) dw: log alpha = -beta t / 2 where beta is constant."""
    if schedule.beta_min == schedule.beta_max:
        for time in (1e-3, 0.3, schedule.t_max):
            assert schedule.node(time).alpha == pytest.approx(math.exp(-time / 2), rel=4 * EPS)
    for lam in np.linspace(*schedule.lam_range, 5):
        assert schedule.node(schedule.time_at(lam)).lam == pytest.approx(lam, rel=1e-12, abs=1e-12)


def test_a_part_of_the_range_is_a_schedule():
    assert VPLinear(t_max=0.1).node(0.1).nsr < 0.5


def test_the_data_are_judged_by_what_was_told_else_by_the_clean_end():
    """Models learn noise down to where it is not seen, which is 1/64 beside the 0.5 of images in [-1, 1]."""
    for schedule in (EDM(), VPLinear(), Flow(), Flow(3.0), EDM(1 / 65)):
        assert schedule.data_scale == 0.5
    latents = EDM(0.0292, 14.61)
    assert latents.data_scale == pytest.approx(0.5 * 0.0292 * 64, rel=1e-12)
    assert EDM(0.0292, 14.61, data_std=0.3).data_scale == 0.3
    ratio = math.sqrt(1 / 0.99 - 1)  # the same noise beside the signal, on another clock
    assert Discrete([0.99, 0.5, 0.01]).data_scale == pytest.approx(EDM(ratio, 10.0).data_scale, rel=1e-12)
    with pytest.raises(ValueError, match=r"data_std must be None or positive and finite.*got 0"):
        EDM(data_std=0)
