"""The stress bench: denoisers against autograd, solutions against closed forms, ratios against arithmetic by hand."""

import io
import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.stress.__main__ import app, solver_of
from benchmarks.stress.galaxies import LAST, PATCH, SCHEDULE, ScoreNetwork
from benchmarks.stress.laws import Categories, Guided, Mixture, Separate, Sphere, field
from benchmarks.stress.measure import Bench, Kept, solution
from benchmarks.stress.page import Measured, page
from benchmarks.stress.peers import PEERS, Named
from benchmarks.stress.problems import OWN, Cell, Problem, cells, exact, only
from benchmarks.stress.ratios import NEGLIGIBLE, over_best, over_simple, summed
from benchmarks.stress.trees import LEAST, MOST, Trees
from fewstep.sampling import integrate, sample
from fewstep.schedule import EDM, Flow, Node, VPLinear
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff

NODES = (Node(0.0, 1.0, 0.05), Node(0.0, 0.6, 0.8), Node(0.0, 0.01, 0.9), Node(0.0, 0.0, 1.0))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(count=3, dim=2, seed=0):
    return Mixture(
        torch.tensor([0.2, 0.5, 0.3][:count]).double(),
        normal(count, dim, seed=seed),
        torch.tensor([0.1, 0.4, 0.7][:count]).double(),
    )


def log_density(law, x, node):
    """Of x = alpha x_0 + sigma noise, component by component in torch.distributions."""
    scale = (node.alpha**2 * law.stds**2 + node.sigma**2).sqrt()
    normals = torch.distributions.Normal(node.alpha * law.means, scale[:, None])
    return (law.weights.log() + normals.log_prob(x[:, None]).sum(-1)).logsumexp(-1)


def tweedie(log_density, x, node):
    """(x + sigma^2 d log p / dx) / alpha."""
    x = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x).sum(), x)
    return (x.detach() + node.sigma**2 * score) / node.alpha


@pytest.mark.parametrize("node", NODES[:3])
def test_mixtures_denoise_by_the_gradient_of_their_log_density(node):
    law, x = mixture(), normal(64, 2, seed=1)
    torch.testing.assert_close(
        law.denoised(x, node), tweedie(lambda x: log_density(law, x, node), x, node), rtol=1e-8, atol=1e-8
    )
    told = law.of_classes(2, len(x))
    own = torch.cat(
        [Mixture(w, law.means, law.stds).denoised(row[None], node) for w, row in zip(told.weights, x, strict=True)]
    )
    torch.testing.assert_close(told.denoised(x, node), own)
    assert ((told.weights > 0).sum(1) == 2).all()


@pytest.mark.parametrize("node", NODES[:3])
def test_spheres_and_categories_denoise_by_the_gradient_of_their_log_density(node):
    """Of |x - alpha x_0|^2 all but <x, x_0> is the same for all x_0: on a sphere its mean of e^k is sinh(k) / k."""
    sphere, x = Sphere(0.7), normal(64, 3, seed=1)
    kinds = Categories(torch.tensor([0.2, 0.5, 0.3, 1e-3]).double(), 2)

    def on_sphere(x):
        k = node.alpha * 0.7 * x.norm(dim=1) / node.sigma**2
        return k + torch.log(-torch.expm1(-2 * k) / k) - x.square().sum(1) / (2 * node.sigma**2)

    def of_kinds(x):
        told = node.alpha / node.sigma**2 * x.reshape(-1, 2, 4) + kinds.weights.log()
        return told.logsumexp(2).sum(1) - x.square().sum(1) / (2 * node.sigma**2)

    for law, density, at in ((sphere, on_sphere, x), (kinds, of_kinds, normal(64, 8, seed=2))):
        torch.testing.assert_close(law.denoised(at, node), tweedie(density, at, node), rtol=1e-7, atol=1e-7)
    assert (sphere.denoised(x, NODES[3]) == 0).all()
    points = normal(200_000, 3, seed=3)
    assert sphere.std == pytest.approx((0.7 * points / points.norm(dim=1, keepdim=True)).std().item(), rel=0.01)
    drawn = torch.multinomial(kinds.weights, 200_000, replacement=True)
    assert kinds.std == pytest.approx(torch.eye(4)[drawn].var(0).mean().sqrt().item(), rel=0.01)


@pytest.mark.parametrize("node", NODES[:3])
def test_separate_coordinates_denoise_by_the_gradient_of_their_log_density(node):
    law, x = mixture(dim=1), normal(32, 3, seed=1)
    found = Separate(law).denoised(x, node)
    torch.testing.assert_close(
        found,
        tweedie(lambda x: sum(log_density(law, x[:, i : i + 1], node) for i in range(3)), x, node),
        rtol=1e-8,
        atol=1e-8,
    )


def test_at_pure_noise_the_answer_is_the_mean():
    law = mixture()
    torch.testing.assert_close(law.denoised(normal(5, 2), NODES[-1]), (law.weights @ law.means).expand(5, 2))


def test_guidance_is_that_of_fewstep():
    law, other, x, node = mixture(), mixture(seed=3), normal(8, 2), NODES[1]
    d, u = law.denoised(x, node), other.denoised(x, node)
    torch.testing.assert_close(Guided(law, other, 7.5).denoised(x, node), d + 6.5 * (d - u))


@pytest.mark.parametrize(("what", "part"), [("noise", 0.8 / 0.6), ("velocity", 0.8 / 1.4)])
def test_errors_are_as_large_as_they_say(what, part):
    """Over many x the mean square of a sum of 64 waves is 1 within a few standard errors of 1 / sqrt(64 dim)."""
    law, x, node = mixture(dim=48), normal(512, 48), NODES[1]
    erring = replace(field(law, law.std, 0.02, 2.0, 48, seed=5), what=what)
    error = (erring.denoised(x, node) - law.denoised(x, node)) / part
    assert error.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.15)


def test_a_rough_error_turns_faster_than_a_smooth_one():
    law, x, node = mixture(dim=48), normal(64, 48), NODES[1]

    def change(rough):
        erring = field(law, law.std, 1.0, rough, 48, seed=5)
        error = [erring.denoised(each, node) - law.denoised(each, node) for each in (x, 1.01 * x)]
        return (error[1] - error[0]).norm().item()

    assert change(2.0) == pytest.approx(4 * change(0.5), rel=0.3)  # in proportion, for small changes


def test_moments_say_the_standard_deviation():
    law = mixture(dim=4).moved(3.0, 7.0)
    drawn = torch.multinomial(law.weights, 100_000, True, generator=torch.Generator().manual_seed(0))
    x = law.means[drawn] + law.stds[drawn, None] * normal(len(drawn), 4)
    assert law.std == pytest.approx((x - x.mean(0)).square().mean().sqrt().item(), rel=0.01)
    assert law.std == pytest.approx(3 * mixture(dim=4).std, rel=1e-12)


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), Flow(3.0)], ids=lambda s: type(s).__name__)
def test_solutions_are_those_in_closed_form(schedule):
    """One Gaussian: x_t = alpha_t mu + sqrt(v_t / v_s) (x - alpha_s mu), v = alpha^2 std^2 + sigma^2."""
    law = Mixture(torch.ones(1).double(), 2 + normal(1, 6), torch.full((1,), 0.3).double())
    problem = Problem("one", "", law, (6,), law.std, 0, {"": schedule}, samples=8)
    s, t = schedule.node(schedule.t_max), schedule.node(schedule.t_min)
    stretch = math.sqrt((t.alpha**2 * 0.09 + t.sigma**2) / (s.alpha**2 * 0.09 + s.sigma**2))
    expected = t.alpha * law.means + stretch * (problem.noise * s.sigma - s.alpha * law.means)
    error = (solution(problem, schedule, s, t) - expected).square().mean().sqrt()
    assert error < problem.converged * problem.std
    if t.sigma:
        closed = solution(problem, schedule, s, schedule.node(schedule.t_clean))
        torch.testing.assert_close(closed, law.denoised(solution(problem, schedule, s, t), t), rtol=0, atol=0)


def test_splits_have_the_same_families_and_other_numbers():
    dev, report = exact("dev"), exact("report")
    assert {each.family for each in dev.values()} == {each.family for each in report.values()}
    seeds = [each.seed + i for found in (dev, report) for each in found.values() for i in (0, each.samples - 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(
        a[1] < b[0]
        for a, b in zip(
            *[iter(sorted((e.seed, e.seed + e.samples - 1) for f in (dev, report) for e in f.values()))] * 2,
            strict=True,
        )
    )
    assert len(list(cells(dev))) > 4 * len(list(cells(dev, quick=True)))
    assert {cell.schedule for cell in cells(dev, quick=True)} >= {"VP", "flow", "EDM"}
    assert set(only(dev, "low")) == {"1 dimensions", "2 dimensions", "4 dimensions"}
    with pytest.raises(ValueError, match="no problem has 'images' in its name"):
        only(dev, "images")


@pytest.mark.parametrize("name", PEERS)
def test_peers_run_from_pure_noise_of_a_flow(name):
    law = mixture()
    schedule = Flow()
    times = [schedule.node(t) for t in (1.0, 0.6, 0.3, 0.0)]
    found = integrate(
        lambda x, t: law.denoised(x, schedule.node(t)), normal(4, 2), times, solver=Named(name), schedule=schedule
    )
    assert found.isfinite().all()


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="got 'euler'"):
        Named("euler")
    assert solver_of("fewstep.solvers:DDIM(eta=0.0)") == DDIM()


A, B = (Cell("p", "VP", levels, 5) for levels in (OWN, "Karras"))
THEIRS = {A: {"ddim": 0.4, "dpmpp-2m": 0.2, "unipc-2": 0.01}, B: {"ddim": 0.3, "dpmpp-2m": 0.5, "unipc-2": 0.1}}


def test_ratios_by_hand():
    ours = {A: 0.1, B: 0.6}
    simple = over_simple(ours, THEIRS)
    assert simple == {A: pytest.approx(0.5), B: pytest.approx(2.0)}
    assert over_best(ours, THEIRS) == {A: pytest.approx(10.0)}
    assert over_best(ours, THEIRS, ("ddim", "dpmpp-2m")) == {A: pytest.approx(0.5)}
    assert over_best({A: 0.0}, {A: {"ddim": 0.0, "dpmpp-2m": 1.0}}) == {A: 1.0}  # both negligible
    assert over_simple({A: 10 * NEGLIGIBLE}, {A: {"ddim": 0.0, "dpmpp-2m": 0.0}}) == {A: pytest.approx(10.0)}
    found = summed(simple)
    assert found == (2, pytest.approx(1.0), pytest.approx(2.0), 0.5, B)
    assert summed({A: math.inf, B: 1.0}).mean == math.inf


def small(samples=4):
    law = mixture()
    return Problem(
        "small",
        "low",
        law,
        (2,),
        law.std,
        0,
        {"VP": VPLinear(), "flow": Flow()},
        levels=(OWN, "time"),
        calls=(5,),
        samples=samples,
    )


def test_errors_are_those_of_sample_and_peers_are_kept(tmp_path):
    problem = small()
    bench = Bench({"small": problem}, tmp_path)
    errors = bench.errors(DPMSolverPP(order=2))
    schedule = problem.schedules["VP"]
    drawn = sample(
        lambda x, t: problem.law.denoised(x, schedule.node(t)),
        problem.noise,
        nfe=5,
        solver=DPMSolverPP(order=2),
        schedule=schedule,
    )
    exact = solution(problem, schedule, schedule.node(schedule.t_max), schedule.node(schedule.t_min))
    expected = (drawn - exact).square().mean().sqrt().item() / problem.std
    assert errors[Cell("small", "VP", OWN, 5)] == pytest.approx(expected, rel=1e-9)
    # The peers' grid is that of the solver they are beside.
    peers = bench.peers(DPMSolverPP(order=2))
    assert peers[Cell("small", "VP", OWN, 5)]["dpmpp-2m"] == pytest.approx(expected, rel=1e-9)
    lines = (tmp_path / "peers.jsonl").read_text().splitlines()
    assert len(lines) == len(bench.cells) * len(PEERS)
    (tmp_path / "peers.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # an interruption
    assert Bench({"small": problem}, tmp_path).peers(DPMSolverPP(order=2)) == peers
    assert (tmp_path / "peers.jsonl").read_text().splitlines() == lines
    bench.peers(EVODiff())  # on other nodes: measured anew
    assert len((tmp_path / "peers.jsonl").read_text().splitlines()) == len(lines) + 2 * len(PEERS)


def test_a_solver_may_be_made_for_a_problem(tmp_path):
    bench = Bench({"small": small()}, tmp_path)
    assert bench.errors(lambda problem: DDIM(), levels=("time",)) == bench.errors(Named("ddim"), levels=("time",))


def test_what_is_not_finite_is_infinitely_far(tmp_path):
    class Broken(DDIM):
        def plan(self, schedule, nodes, nfe=None):
            return [
                stage._replace(move=stage.move._replace(scale=math.inf)) for stage in super().plan(schedule, nodes, nfe)
            ]

    bench = Bench({"small": small()}, tmp_path)
    assert set(bench.errors(Broken()).values()) == {math.inf}


def test_kept_errors_are_not_measured_again(tmp_path):
    kept = Kept(tmp_path / "kept.jsonl")
    assert kept.once(("a", "b"), lambda: 0.25) == 0.25
    assert kept.once(("a", "b"), lambda: pytest.fail("measured again")) == 0.25
    assert Kept(tmp_path / "kept.jsonl").once(("a", "b"), lambda: pytest.fail("measured again")) == 0.25
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == ["a", "b", 0.25]


def test_the_page_and_the_command(tmp_path):
    bench = Bench({"small": small()}, tmp_path)
    found = Measured(bench, bench.errors(EVODiff()), bench.peers(EVODiff()))
    text = page(found, found, "dev", "the command")
    assert "`the command`" in text
    assert "| EVODiff() |" in text
    done = CliRunner().invoke(app, ["--only", "1 dimensions", "--quick", "--solver", "ddim", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| levels: own |" in done.output


SIDE, HIDDEN, MIX, PATCHES = 8, 3, 5, 4


def arrays(seed=0):
    """Those of a small network of the shapes of ScoreNetwork, two blocks."""
    generator = np.random.default_rng(seed)
    shapes = [(HIDDEN, 2, PATCH, PATCH), (HIDDEN, 1, 1), (1, HIDDEN, PATCH, PATCH), (1, 1, 1)]
    for _ in range(2):
        for size in (PATCHES, HIDDEN):
            shapes += [(MIX, size), (MIX,), (size, MIX), (size,)]
        shapes += [(HIDDEN, PATCHES)] * 2 + [(PATCHES, HIDDEN)] * 2
    shapes += [(HIDDEN, PATCHES)] * 2
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def by_hand(values, image, time):
    """The score of one image (H, H), patch by patch, in numpy."""
    values = iter(values)
    enter, enter_bias, leave, leave_bias = (next(values) for _ in range(4))
    seen = np.stack([image, np.full_like(image, time / LAST)])
    corners = [(i, j) for i in range(0, SIDE, PATCH) for j in range(0, SIDE, PATCH)]
    y = np.stack([np.einsum("hcij,cij->h", enter, seen[:, i : i + PATCH, j : j + PATCH]) for i, j in corners], 1)
    y = y + enter_bias.reshape(-1, 1)

    def normed(y, weight, bias):
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * weight + bias

    def mlp(row, a, b, c, d):
        return c @ np.maximum(a @ row + b, 0) + d

    for _ in range(2):
        first, second = [[next(values) for _ in range(4)] for _ in range(2)]
        norm1, norm2 = [[next(values) for _ in range(2)] for _ in range(2)]
        z = normed(y, *norm1)
        y = y + np.stack([mlp(row, *first) for row in z])
        y = y.T
        z = normed(y, *norm2)
        y = (y + np.stack([mlp(row, *second) for row in z])).T
    y = normed(y, next(values), next(values))
    score = np.zeros((SIDE, SIDE))
    for k, (i, j) in enumerate(corners):
        # The kernel of a correlation that is dilated, as Equinox has it, is turned.
        score[i : i + PATCH, j : j + PATCH] = (
            np.einsum("h,hab->ab", y[:, k], leave[0, :, ::-1, ::-1]) + leave_bias.item()
        )
    return score


@pytest.fixture
def network(tmp_path):
    file = io.BytesIO()
    for each in [*arrays(), np.array(LAST)]:
        np.save(file, each)
    with zipfile.ZipFile(tmp_path / "wheel", "w") as archive:
        archive.writestr("galaxygrad/small.eqx", file.getvalue())
    return ScoreNetwork.load(tmp_path / "wheel", "small")


def test_score_networks_are_read_and_computed_as_by_hand(network):
    x = normal(2, 1, SIDE, SIDE)
    assert network.side == SIDE
    found = network.score(x.float(), 3.0)
    expected = np.stack([by_hand(arrays(), image[0].numpy(), 3.0)[None] for image in x])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_score_networks_denoise_by_tweedie_at_any_scale(network):
    x = normal(2, 1, SIDE, SIDE)
    node = SCHEDULE.node(1.5)
    expected = (x + node.sigma**2 * network.score(x.float(), 1.5)) / node.alpha
    torch.testing.assert_close(network.denoised(x, node), expected, rtol=1e-5, atol=1e-5)
    ve = Node(node.nsr, 1.0, node.nsr)  # the same noise-to-signal ratio
    torch.testing.assert_close(network.denoised(x / node.alpha, ve), expected, rtol=1e-5, atol=1e-5)


def test_the_schedule_of_the_galaxies_has_a_constant_beta():
    for t in (SCHEDULE.t_min, 1.0, LAST):
        node = SCHEDULE.node(t)
        assert node.alpha == pytest.approx(math.exp(-t / 2), rel=1e-9)
        assert SCHEDULE.time_at(node.lam) == pytest.approx(t, rel=1e-6)


class Half:
    """In place of a booster: minus the noise is half the second of y, plus what is known and the time."""

    def predict(self, seen, num_threads):
        return seen[:, 1] / 2 + seen[:, 2] + seen[:, 3]


def test_trees_denoise_by_the_noise_they_predict_at_their_own_time():
    law = Trees(("", ""), torch.tensor([[0.0], [3.0]]).double())
    law.__dict__["_boosters"] = [Half(), Half()]
    y, time = normal(2, 2), 0.25
    sigma = math.sqrt((LEAST * (MOST / LEAST) ** time) ** 2 - LEAST**2)
    expected = y + sigma * (y[:, 1:] / 2 + law.known + time)
    torch.testing.assert_close(law.denoised(y, Node(0.0, 1.0, sigma)), expected)
    torch.testing.assert_close(law.denoised(0.5 * y, Node(0.0, 0.5, 0.5 * sigma)), expected)
