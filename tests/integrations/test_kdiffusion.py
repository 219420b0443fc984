"""Solvers as k-diffusion's samplers: the same numbers as our loop's, in that convention."""

import inspect
import itertools
import math

import pytest
import torch

import fewstep as fs
from fewstep.integrations.kdiffusion import History, get_sigmas_focused, sample_evodiff, sampler
from fewstep.table import SOLVERS
from peers import k_diffusion, rational_model
from table import every_solver

SIGMAS = torch.tensor([14.0, 6.0, 2.5, 0.9, 0.3, 0.05, 0.0])
FLOW_SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.45, 0.2, 0.06, 0.0])


def picture(x, sigma):
    """A denoiser as k-diffusion calls it; sigma is (B,)."""
    level = sigma.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return (x + 0.3 * torch.sin(x)) / (1.5 + level**2) + 0.25


def start(dtype=torch.float64):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
@every_solver
def test_equals_our_own_loop(entry, flow):
    """Bit for bit, over nodes made by hand, for every solver of the table."""
    sigmas = FLOW_SIGMAS if flow else SIGMAS
    nodes = [fs.Node(s, 1 - s if flow else 1.0, s) for s in sigmas.tolist()]
    solver, schedule, x = entry.on_flow if flow else entry.solver, fs.Flow() if flow else fs.EDM(), start()
    if not flow:
        x = x * 14
    seeds = range(2) if entry.stochastic else None
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return picture(x, torch.full((len(x),), t, dtype=torch.float32))

    wanted = fs.integrate(denoiser, x, nodes, solver=solver, schedule=schedule, seeds=seeds)
    told = []

    def model(x, sigma):
        told.append(sigma)
        return picture(x, sigma)

    got = sampler(solver, flow=flow)(model, x, sigmas, disable=True, seeds=seeds)
    assert torch.equal(got, wanted)
    assert [sigma.tolist() for sigma in told] == [[float(torch.tensor(t))] * 2 for t in calls]


@pytest.mark.parametrize(
    ("name", "solver"),
    [("euler", fs.DDIM()), ("heun", fs.Heun()), ("dpmpp_2m", fs.DPMSolverPP(order=2, final_order=2))],
)
def test_takes_the_place_of_k_diffusions_own(name, solver):
    sampling = k_diffusion()
    model, x, _, sigmas = rational_model()
    wanted = getattr(sampling, f"sample_{name}")(lambda x, s: model(x, s[:, None, None, None]), x, sigmas, disable=True)
    got = sampler(solver)(lambda x, s: model(x, s[:, None, None, None]), x, sigmas, disable=True)
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_euler_of_two_levels_is_its_formula():
    """x + (x - D) / sigma (sigma' - sigma); on a flow, where the velocity is (x - D) / sigma too."""
    x = start()
    for flow in (False, True):
        denoised = picture(x, torch.tensor([0.8, 0.8]))
        got = sampler(fs.DDIM(), flow=flow)(picture, x, torch.tensor([0.8, 0.5]), disable=True)
        wanted = x + (x - denoised) / 0.8 * (0.5 - 0.8)
        assert torch.allclose(got, wanted, rtol=0, atol=1e-6)  # 0.8 and 0.5 are float32 there


def test_the_model_is_given_what_k_diffusion_gives_it():
    seen = []

    def model(x, sigma, *, cond, scale):
        seen.append((x.dtype, sigma.dtype, tuple(sigma.shape), sigma[0].item(), cond, scale))
        return picture(x, sigma)

    for dtype in (torch.float32, torch.bfloat16):
        x = start(dtype) * 14
        out = sample_evodiff(model, x, SIGMAS, {"cond": "a cat", "scale": 7.5}, disable=True)
        assert (out.dtype, out.shape) == (dtype, x.shape)
        assert seen == [(dtype, torch.float32, (2,), s, "a cat", 7.5) for s in SIGMAS[:-1].tolist()]
        seen.clear()


@pytest.mark.parametrize("solver", [fs.EVODiff(), fs.DDIM(), fs.Heun(), fs.DPMSolver(order=3, method="singlestep")])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_the_callback_hears_of_every_step_once(solver, end):
    """As k-diffusion tells it: x before the step, and what the model said of it."""
    sigmas = torch.tensor([14.0, 6.0, 2.5, 0.9, 0.3, end])
    told = []
    x = start() * 14
    sampler(solver)(picture, x, sigmas, callback=told.append, disable=True)
    assert [each["i"] for each in told] == list(range(5))
    assert torch.equal(told[0]["x"], x)
    for each in told:
        assert set(each) == {"i", "x", "sigma", "sigma_hat", "denoised"}
        assert each["sigma"] == sigmas[each["i"]]
        assert torch.equal(each["denoised"], picture(each["x"], each["sigma_hat"].repeat(2)))
        assert each["sigma_hat"] == each["sigma"] or isinstance(solver, fs.DPMSolver)  # its steps take 1 to 3 calls


@pytest.mark.parametrize("sigmas", [torch.tensor([]), torch.tensor([3.0]), torch.tensor([3.0, 3.0])])
def test_nothing_to_do_returns_x(sigmas):
    x = start()
    assert sample_evodiff(lambda *_: pytest.fail("called"), x, sigmas) is x


def test_the_scale_of_the_data_is_read_off_the_models_range():
    """0.93 on Stable Diffusion's, as the schedule of that range has it; a scale that was told is not touched."""
    x = start() * 14
    given = sampler(fs.EVODiff(), sigma_min=0.0292)(picture, x, SIGMAS, disable=True)
    told = fs.EVODiff(data_std=fs.EDM(0.0292, 14.6).data_scale)
    assert torch.equal(given, sampler(told, sigma_min=0.0292)(picture, x, SIGMAS, disable=True))
    assert not torch.equal(given, sample_evodiff(picture, x, SIGMAS, disable=True))
    told, noisy = fs.EVODiff(data_std=0.5), SIGMAS[:-1]
    assert torch.equal(
        sampler(told, sigma_min=0.0292)(picture, x, noisy, disable=True),
        sampler(told)(picture, x, noisy, disable=True),
    )


@pytest.mark.parametrize("sigma_min", [0.002, 0.01, 0.0292])
def test_the_last_step_foretells_down_to_the_models_range(sigma_min):
    x = start() * 14
    told = fs.EVODiff(data_std=0.5)
    schedule = fs.EDM(sigma_min, 80.0)
    nodes = [schedule.node(level) if level else fs.schedule.Node(0.0, 1.0, 0.0) for level in SIGMAS.tolist()]
    expected = fs.integrate(lambda x, t: picture(x, x.new_full((len(x),), t)), x, nodes, solver=told, schedule=schedule)
    got = sampler(told, sigma_min=sigma_min)(picture, x, SIGMAS, disable=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_level_that_repeats_is_left_out():
    repeated = torch.tensor([14.0, 6.0, 6.0, 2.5, 0.9, 0.3, 0.05, 0.05, 0.0])
    told, x = [], start() * 14
    got = sample_evodiff(picture, x, repeated, callback=told.append, disable=True)
    assert torch.equal(got, sample_evodiff(picture, x, SIGMAS, disable=True))
    assert [each["i"] for each in told] == list(range(8))  # a progress bar counts places
    assert [each["sigma"].item() for each in told] == repeated[:-1].tolist()
    assert torch.equal(told[2]["denoised"], told[1]["denoised"])
    for i, sigma in enumerate(repeated[:-1].tolist()):
        assert told[i]["sigma_hat"].item() == sigma


@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
def test_sigmas_that_rise_again_are_runs_with_noise_between(flow):
    """Restart: by hand, with the noise that leads from one level to the other in distribution."""
    first, second = ([0.99, 0.8, 0.4], [0.7, 0.2, 0.0]) if flow else ([14.0, 6.0, 0.9], [5.0, 1.0, 0.0])
    x, solver, told = start(), sampler(fs.EVODiff(), flow=flow), []
    noise = fs.unit_noise([5, 6], (3, 4, 4), dtype=torch.float64)
    s, t = first[-1], second[0]
    scale = (1 - t) / (1 - s) if flow else 1.0
    middle = solver(picture, x, torch.tensor(first, dtype=torch.float64), disable=True)
    again = middle * scale + noise * (t**2 - (scale * s) ** 2) ** 0.5
    wanted = solver(picture, again, torch.tensor(second, dtype=torch.float64), disable=True)
    sigmas = torch.tensor([*first, 0.5 if flow else 2.0, *second], dtype=torch.float64)  # rises twice in a row
    got = solver(picture, x, sigmas, callback=told.append, disable=True, noise_sampler=lambda s, t: noise)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert [each["i"] for each in told] == list(range(6))
    assert [each["sigma_hat"].item() for each in told] == [first[0], first[1], first[1], first[1], *second[:2]]


def test_sigmas_that_end_in_a_rise_end_in_its_noise():
    """No call is made for it; unit noise of variance 3^2 - 1^2 is added."""
    x, down = start(), torch.tensor([9.0, 4.0, 1.0])
    up = sampler(fs.DDIM())(picture, x, torch.tensor([9.0, 4.0, 1.0, 3.0]), disable=True, seeds=[1, 2])
    added = (up - sampler(fs.DDIM())(picture, x, down, disable=True)) / 8**0.5
    drawn = fs.sampling.step_noise([1, 2], x)(fs.Node(1.0, 1.0, 1.0))
    torch.testing.assert_close(added, drawn, rtol=0, atol=1e-12)


def test_a_flow_may_begin_at_one_and_a_rounding():
    """As float32 leaves sigma_max of shift 4.03; the run is that from 1, and the model is told 1."""
    sigmas, seen = torch.tensor([1 + 2**-23, *FLOW_SIGMAS[1:].tolist()]), []

    def model(x, sigma):
        seen.append(sigma[0].item())
        return picture(x, sigma)

    solver = sampler(fs.EVODiff(), flow=True)
    got = solver(model, start(), sigmas, disable=True)
    assert torch.equal(got, solver(picture, start(), FLOW_SIGMAS, disable=True))
    assert seen[0] == 1.0
    above = get_sigmas_focused(5, 0.01, 1 + 2**-23, flow=True)
    assert torch.equal(above, get_sigmas_focused(5, 0.01, 1.0, flow=True))


@pytest.mark.parametrize("name", ["evodiff", "unipc-3", "dpmpp-3m", "deis-4", "ipndm-4", "era", "evodiff-paper"])
@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
def test_two_halves_with_a_history_are_a_whole(name, flow):
    """Afresh, the second half loses its order.

    The weights of EVODiff look at where the whole list ends, and so does its trust: a tenth of its own error.
    """

    def levels(steps):
        return torch.linspace(0.98, 0.02, steps) if flow else torch.logspace(1, -1.5, steps)

    sigmas, many = (torch.cat([levels(steps), torch.zeros(1)]) for steps in (15, 1000))
    solver, x, history = sampler(SOLVERS[name].on_flow, flow=flow), start(), History()
    whole = solver(picture, x, sigmas, disable=True)
    middle = solver(picture, x, sigmas[:8], disable=True, history=history)
    carried = middle.to(torch.float32).to(x)  # on its way through a latent
    got = solver(picture, carried, sigmas[7:], disable=True, history=history)
    error = (whole - sampler(fs.UniPC(order=3), flow=flow)(picture, x, many, disable=True)).abs().max().item()
    torch.testing.assert_close(got, whole, rtol=0, atol=error / 10 if name == "evodiff" else 1e-6)
    afresh = solver(picture, middle, sigmas[7:], disable=True)
    assert (afresh - whole).abs().max() > 2 * (got - whole).abs().max()


def test_a_history_is_for_what_was_left_alone():
    """Another state, level, solver or convention starts afresh; so does a run whose steps take more calls."""
    x, sigmas = start() * 14, SIGMAS
    two, three = sampler(fs.UniPC(order=2)), sampler(fs.UniPC(order=3))

    def second(first, then, x=None, places=slice(3, None)):
        history = History()
        left = first(picture, start() * 14, sigmas[:4], disable=True, history=history)
        given = left if x is None else x
        got = then(picture, given, sigmas[places], disable=True, history=history)
        return torch.equal(got, then(picture, given, sigmas[places], disable=True))

    assert not second(three, three)
    assert second(three, three, x=x)
    assert second(three, three, places=slice(4, None))
    assert second(two, three)
    assert second(three, sampler(fs.UniPC(order=3), flow=True))
    assert second(three, sampler(fs.UniPC(order=3), sigma_min=0.1))
    assert second(sampler(fs.Heun()), sampler(fs.Heun()))


def test_a_way_up_and_down_again_is_two_runs():
    """Unsampling and sampling: x is what was left, but the sigmas turn."""
    up, history, solver = SIGMAS[:-1].flip(0), History(), sampler(SOLVERS["dpmpp-2m"].solver)
    noisy = solver(picture, start(), up, disable=True, history=history)
    back = solver(picture, noisy, SIGMAS, disable=True, history=history)
    assert torch.equal(back, solver(picture, noisy, SIGMAS, disable=True))


def test_a_long_run_in_three_parts_is_a_whole():
    """300 steps: EVODiff plans them in windows, which may lie elsewhere."""
    sigmas = torch.cat([torch.logspace(1.1, -1.5, 300), torch.zeros(1)])
    solver, x, history = sampler(fs.EVODiff()), start() * 12, History()
    whole = solver(picture, x, sigmas, disable=True)
    for part in (slice(0, 101), slice(100, 241), slice(240, 301)):
        x = solver(picture, x, sigmas[part], disable=True, history=history)
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", [[], [0.0]], ids=["noisy", "clean"])
@every_solver
def test_the_callback_hears_the_first_call_of_each_step(entry, end):
    """At the step's level, or above where it begins with noise, and with all later calls below."""
    sigmas, levels, told = torch.cat([torch.logspace(1.1, -1.3, 9), torch.tensor(end)]), [], []

    def model(x, sigma):
        levels.append(sigma[0].item())
        return picture(x, sigma)

    def callback(step):
        assert step["sigma_hat"].item() == levels[-1]
        told.append(len(levels) - 1)

    run = sampler(entry.solver)
    run(model, start() * 14, sigmas, callback=callback, disable=True, seeds=range(2) if entry.stochastic else None)
    assert told[0] == 0
    for (call, after), sigma in zip(itertools.pairwise([*told, len(levels)]), sigmas.tolist(), strict=False):
        churned = getattr(entry.solver, "s_churn", 0) > 0
        assert levels[call] > sigma if churned else levels[call] == pytest.approx(sigma, rel=1e-6)
        assert max(levels[call + 1 : after], default=0.0) < sigma


def test_edits_in_the_callback_count():
    """Of x and of what was denoised, in place, before the step is made: DDIM's step by hand."""
    sigmas = torch.tensor([4.0, 2.0, 1.0])

    def edit(told):
        if told["i"] == 1:
            told["x"].mul_(0.5)
            told["denoised"].add_(3)

    x = start()
    once = sampler(fs.DDIM())(picture, x, sigmas[:2], disable=True)
    denoised = picture(once, torch.tensor([2.0, 2.0])) + 3
    wanted = once * 0.5 * (1 / 2) + denoised * (1 - 1 / 2)
    got = sampler(fs.DDIM())(picture, x, sigmas, callback=edit, disable=True)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    kept = x.clone()
    sampler(fs.DDIM())(picture, x, sigmas, callback=lambda told: told["x"].zero_(), disable=True)
    assert torch.equal(x, kept)


def test_options_of_stochastic_samplers():
    """eta and s_noise by their meaning, noise_sampler by what it is told; and no eta where there is none."""
    x, sigmas = start(), torch.tensor([4.0, 2.0, 1.0])
    ddim, two = sampler(fs.DDIM()), sampler(fs.DPMSolverPP(order=2))
    asked = []

    def ones(sigma, following):
        asked.append((sigma.item(), following.item()))
        return torch.ones_like(x)

    def run(solver, **options):
        return solver(picture, x, sigmas, disable=True, **options)

    noisy = sampler(fs.DDIM(eta=0.5))
    assert torch.equal(run(ddim, eta=0.5, seeds=[1, 2]), run(noisy, seeds=[1, 2]))
    assert torch.equal(run(noisy, eta=0.0), run(ddim))
    sde = run(sampler(fs.SDEDPMSolverPP(order=2)), seeds=[1, 2])
    torch.testing.assert_close(run(two, eta=1.0, seeds=[1, 2]), sde, rtol=0, atol=1e-12)
    by_hand = run(sampler(fs.Stochastic(fs.EVODiff(), 0.3)), seeds=[1, 2])
    assert torch.equal(run(sampler(fs.EVODiff()), eta=0.3, seeds=[1, 2]), by_hand)
    assert torch.equal(run(two, eta=0.0), run(two))
    assert torch.equal(run(sampler(fs.EVODiff()), eta=0.0), run(sampler(fs.EVODiff())))
    run(noisy, noise_sampler=ones)
    assert asked == [(4.0, 2.0), (2.0, 1.0)]
    last = torch.tensor([2.0, 1.0])
    one, two_fold = (
        noisy(picture, x, last, None, None, True, None, s_noise, noise_sampler=ones) for s_noise in (1.0, 2.0)
    )
    spread = 0.5 * (1 - 1 / 4) ** 0.5  # eta sigma_t sqrt(1 - sigma_t^2 / sigma_s^2)
    torch.testing.assert_close(two_fold - one, torch.full_like(x, spread), rtol=0, atol=1e-12)
    for solver in (fs.EVODiff("published"), fs.IPNDM()):
        with pytest.raises(ValueError, match=r"^eta needs .* eta=0\.7"):
            run(sampler(solver), eta=0.7, seeds=[1, 2])


def test_a_plan_is_made_once(monkeypatch):
    made, plan = [], fs.EVODiff.plan

    def counted(self, *args):
        made.append(args)
        return plan(self, *args)

    monkeypatch.setattr(fs.EVODiff, "plan", counted)
    sample_evodiff(picture, start(), SIGMAS, callback=lambda told: None, disable=True)
    assert len(made) == 1


def test_the_function_has_its_name_and_docstring():
    assert sample_evodiff.__name__ == "sample_evodiff"
    assert "EVODiff" in sample_evodiff.__doc__
    named = list(inspect.signature(sample_evodiff).parameters)
    assert named[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]


def test_a_linear_solver_inverts():
    """Up and down again over 60 steps; second order leaves 2e-3 of a state of 14."""
    sigmas = torch.logspace(-1, 1, 61, dtype=torch.float64)
    x, solver = start(), sampler(fs.UniPC(order=2))
    there = solver(picture, x, sigmas, disable=True)
    assert (solver(picture, there, sigmas.flip(0), disable=True) - x).abs().max() < 2e-3
    assert (there - x).abs().max() > 1


FLIPPED = torch.tensor([1e-4, 0.064, 0.13, 0.24, 0.44, 0.78, 1.33, 2.2, 3.6, 8.6, 14.6], dtype=torch.float64)


def test_an_inversion_from_far_below_the_rest_is_right_or_refused():
    """As ComfyUI flips sigmas: from 1e-4. The exact noise of a Gaussian scales with its standard deviation."""
    x = start() / 2
    exact = x * ((0.25 + FLIPPED[-1] ** 2) / (0.25 + FLIPPED[0] ** 2)).sqrt()

    def gaussian(x, sigma):
        return x * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)

    def error(solver):
        got = sampler(solver)(gaussian, x, FLIPPED, disable=True)
        return float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    for name in ("unipc-2", "unipc-3", "unipc-4", "unipc-2-vary", "re-single-data"):
        with pytest.raises(ValueError, match="named unipc-3-noise"):
            error(SOLVERS[name].solver)
    assert error(SOLVERS["unipc-3-noise"].solver) < 0.02
    assert error(SOLVERS["dpmpp-2m"].solver) < 0.1
    assert error(SOLVERS["unipc-3-bh1"].solver) < 0.3
    from_lowest = SIGMAS[:-1].flip(0)
    assert sampler(SOLVERS["unipc-3"].solver)(gaussian, x, from_lowest, disable=True).isfinite().all()


@pytest.mark.parametrize(
    ("sigmas", "flow", "message"),
    [
        (SIGMAS.flip(0), False, "must not start at sigma = 0"),
        (torch.tensor([0.1, 1.0, 9.0]), False, "falling noise"),
        (torch.tensor([1.0, 5.0, 2.0]), False, "strictly sorted"),
        (torch.tensor([5.0, 1.0, 2.0]), False, "sigmas rise again draws noise: give seeds="),
        (torch.tensor([5.0, float("nan"), 2.0]), False, "must be finite; got nan at index 1"),
        (torch.tensor([float("nan"), 1.0, 0.0]), True, "must be finite; got nan at index 0"),
        (torch.tensor([14.0, 0.5, 0.0]), True, "sigmas of a flow must lie in"),
        (torch.tensor([1.00001, 0.5, 0.0]), True, "sigmas of a flow must lie in"),
    ],
)
def test_sigmas_that_are_no_run_are_refused(sigmas, flow, message):
    with pytest.raises(ValueError, match=message):
        sampler(fs.EVODiff(), flow=flow)(picture, start(), sigmas, disable=True)


@pytest.mark.parametrize("sigmas", [[14.0, 1.0, 0.0], torch.tensor([3, 2, 1]), SIGMAS[None]])
def test_sigmas_must_be_a_tensor_of_levels(sigmas):
    with pytest.raises(TypeError, match="sigmas must be a tensor"):
        sample_evodiff(picture, start(), sigmas)


def test_a_stochastic_solver_asks_for_seeds():
    with pytest.raises(ValueError, match="seeds="):
        sampler(fs.SDEDPMSolverPP(order=2))(picture, start(), SIGMAS, disable=True)


def test_a_broken_model_is_named():
    with pytest.raises(fs.sampling.DenoiserError, match="call 0"):
        sample_evodiff(lambda x, s: x * math.nan, start(), SIGMAS, disable=True)


def test_the_bar_is_shown_unless_disabled(capfd):
    pytest.importorskip("tqdm")
    sample_evodiff(picture, start() * 14, SIGMAS, disable=False)
    assert "6/6" in capfd.readouterr().err
    sample_evodiff(picture, start() * 14, SIGMAS, disable=True)
    sample_evodiff(picture, start() * 14, SIGMAS)  # None: not a terminal
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_levels_of_its_own_are_those_of_the_grid(n):
    sigmas = get_sigmas_focused(n, 0.03, 14.6)
    assert sigmas.tolist() == pytest.approx([node.sigma for node in fs.focused(fs.EDM(0.03, 14.6), n, to_zero=True)])
    flow = get_sigmas_focused(n, 0.001, 1.0, flow=True)  # the ends of Flow's grids in log-SNR
    assert flow.tolist() == pytest.approx([node.sigma for node in fs.focused(fs.Flow(), n)], rel=1e-6)
    # To 0 by a call of its own where it shows.
    for each, end in ((sigmas, 0.0), (flow, 0.001)):
        assert (each.dtype, each.shape, each[-1].item()) == (torch.float32, (n + 1,), pytest.approx(end))
        assert (each[1:] < each[:-1]).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 1.5)])
def test_levels_of_a_flow_lie_in_0_to_1(low, high):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        get_sigmas_focused(5, low, high, flow=True)


def test_eta_0_draws_nothing_whatever_the_solver_calls_it():
    x, sigmas = torch.randn(2, 4, dtype=torch.float64) * 14.6, get_sigmas_focused(6, 0.03, 14.6)
    for solver in (fs.SEEDS(), fs.ERSDE(), fs.SASolver(), fs.Stochastic(fs.EVODiff(), 0.3), fs.SDEDPMSolverPP()):
        one, other = (
            sampler(solver)(
                lambda x, s: x * 0.25 / (0.25 + s[:, None] ** 2), x, sigmas, disable=True, eta=0, seeds=seeds
            )
            for seeds in ([1, 2], [3, 4])
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"noise_sampler": lambda a, b: torch.ones(1)},
            r"noise_sampler must return a tensor like x, \(2, 4\); got \(1,\)",
        ),
        ({"noise_sampler": lambda a, b: None}, r"noise_sampler must return a tensor like x, \(2, 4\); got NoneType"),
        ({"noise_sampler": lambda a, b: torch.ones(2, 4), "seeds": [1, 2]}, "noise_sampler or seeds, not both"),
        ({"seeds": [1, 2], "s_noise": math.nan}, "s_noise must be finite and at least 0"),
    ],
)
def test_noise_that_is_not_like_x_is_refused(options, message):
    x, sigmas = torch.randn(2, 4, dtype=torch.float64) * 14.6, get_sigmas_focused(6, 0.03, 14.6)
    with pytest.raises(ValueError, match=message):
        sampler(fs.EVODiff())(lambda x, s: 0.5 * x, x, sigmas, disable=True, eta=1.0, **options)


@pytest.mark.parametrize("solver", [fs.DPMSolverPP(), fs.UniPC(), fs.UniPC(order=2), fs.EVODiff()])
def test_a_half_that_ends_at_the_lowest_level_knows_that_zero_comes_next(solver):
    x, sigmas = torch.randn(8, 4, dtype=torch.float64) * 14.6, get_sigmas_focused(10, 0.03, 14.6)
    run, history = sampler(solver, sigma_min=0.03), History()

    def model(x, s):
        return x * 0.25 / (0.25 + s[:, None] ** 2)

    half = run(model, x, sigmas[:10], disable=True, history=history)
    whole = run(model, x, sigmas, disable=True)
    torch.testing.assert_close(
        run(model, half, sigmas[9:], disable=True, history=history), whole, rtol=1e-9, atol=1e-12
    )


def test_a_half_that_ends_at_the_lowest_level_can_go_on_below_it():
    """The next call is foretold from answers that a run which goes straight to zero has no use for."""
    x, sigmas = torch.randn(8, 4, dtype=torch.float64) * 14.6, torch.tensor([14.6, 5.0, 2.0, 0.9, 0.3, 0.03, 0.0])
    run, history = sampler(fs.EVODiff(), sigma_min=0.3), History()
    whole = run(picture, x, sigmas, disable=True)
    half = run(picture, x, sigmas[:5], disable=True, history=history)
    got = run(picture, half, sigmas[4:], disable=True, history=history)
    afresh = run(picture, half, sigmas[4:], disable=True)
    assert (got - whole).norm() < (afresh - whole).norm()


@pytest.mark.parametrize("name", ["evodiff", "unipc-3", "dpmpp-2m"])
@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
def test_where_noise_is_not_seen_a_run_is_over(name, flow):
    """Whether it keeps a history or not: its last steps are the last, and nothing of it is kept."""
    low, high = (0.001, 1.0) if flow else (0.002, 80.0)
    sigmas, history = get_sigmas_focused(6, low, high, flow=flow), History()
    assert 0 < sigmas[-1] < 1 / 64
    run, x = sampler(SOLVERS[name].on_flow, flow=flow, sigma_min=None if flow else low), start() * high
    whole = run(picture, x, sigmas, disable=True)
    assert torch.equal(run(picture, x, sigmas, disable=True, history=history), whole)
    assert not history._left


@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
def test_negative_sigmas_are_refused(flow):
    with pytest.raises(ValueError, match=r"sigmas must be noise levels of 0 or more; got -0.5 at index 1"):
        sampler(fs.DDIM(), flow=flow)(picture, start(), torch.tensor([1.0, -0.5, 0.0]), disable=True)
