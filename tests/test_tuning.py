"""What `tune` finds is better where nothing was tuned, costs what was said, and survives what happens to it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import fewstep as fs
from benchmarks.problems import gaussian
from fewstep import tuning
from fewstep.solvers.tuned import Tuned
from fewstep.tuning import BOUND, MOST, Beyond, Search, Slot, cost, details

SHAPE = (2, 4, 4)
SEEDS = 16
PROBLEM = gaussian(SHAPE, components=2)


class Counting:
    """The exact denoiser of a mixture, which counts the samples it is asked for, and fails at one."""

    def __init__(self, schedule, fails_after=None, failure=KeyboardInterrupt):
        self.schedule, self.denoise = schedule, PROBLEM.denoiser(schedule)
        self.asked, self.fails_after, self.failure = 0, fails_after, failure

    def __call__(self, x, t):
        self.asked += len(x)
        if self.fails_after is not None and self.asked > self.fails_after:
            if isinstance(self.failure, float):
                return x * self.failure
            raise self.failure
        return self.denoise(x, t)


def tuned(denoiser, nfe=(5,), seeds=SEEDS, most=1500, **rest):
    return fs.tune(denoiser, shape=SHAPE, nfe=nfe, seeds=range(seeds), most=most, dtype=torch.float64, **rest)


@pytest.mark.filterwarnings("ignore:the reference is off by")  # 8 tuned calls come near it
@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=str)
def test_it_is_better_on_seeds_that_it_never_saw(schedule):
    """One Gaussian, whose solution is known; a mixture's few samples between two components decide its error."""
    problem = gaussian(SHAPE)
    denoiser = problem.denoiser(schedule)
    found = tuned(denoiser, (5, 8), 32, most=MOST)
    noise = fs.unit_noise(range(1000, 1128), SHAPE, dtype=torch.float64)
    start, *_, end = fs.focused(schedule, 5)
    exact = problem.solution(noise * start.sigma, start, end)
    for outcome in found.report:
        tuned_, default = (
            (fs.sample(denoiser, noise, nfe=outcome.calls, solver=solver) - exact).square().mean().sqrt()
            for solver in (found, fs.EVODiff())
        )
        assert tuned_ < 0.8 * default  # the aim; it is less
        assert outcome.kept
        assert outcome.high < 1


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.VPLinear(), fs.Flow()], ids=str)
def test_many_seeds_show_the_few_samples_between_two_outcomes(schedule):
    """One in a hundred is most of the mean square here: 16 to tune on would hardly have one."""
    denoiser = gaussian((1,), components=3).denoiser(schedule)
    found = fs.tune(denoiser, shape=(1,), nfe=(8,), seeds=range(1024), most=400_000, batch=128, dtype=torch.float64)
    noise = fs.unit_noise(range(10_000, 14_000), (1,), dtype=torch.float64)
    exact = fs.sample(denoiser, noise, nfe=200)
    default, ours = (
        (fs.sample(denoiser, noise, nfe=8, solver=solver) - exact).square().mean().sqrt()
        for solver in (fs.EVODiff(), found)
    )
    assert ours < 0.7 * default  # it is less than half
    assert found.report[0].evaluations <= 400_000


def test_of_few_seeds_sizes_of_errors_are_added_of_many_their_squares(monkeypatch, free_end):
    denoiser, schedule = PROBLEM.denoiser(fs.EDM()), fs.EDM()
    noise = fs.unit_noise(range(6), SHAPE, dtype=torch.float64)
    added = []

    def once(name, make):
        return make()

    for many in (7, 6):
        monkeypatch.setattr(tuning, "MANY", many)
        count = tuning.Count(None, 0)
        batch = tuning.Batch.of(denoiser, schedule, noise, once, "", count)
        search = Search(5, schedule, [batch], lambda x: x, once, count)
        added.append(search._losses(np.zeros(len(search.slots))))
    default = fs.sample(denoiser, noise, nfe=5, schedule=schedule)
    sizes = (default - batch.exact).flatten(1).square().mean(1).sqrt().numpy()
    np.testing.assert_allclose(added[0], sizes, rtol=1e-12)
    np.testing.assert_allclose(added[1], sizes**2, rtol=1e-12)


def test_levels_are_tuned_where_not_every_weight_can_be_paid_for():
    """Each of the 91 numbers of 12 calls costs a part of a run. The error comes down to that of the reference."""
    denoiser = gaussian(SHAPE).denoiser(fs.EDM())
    with pytest.warns(UserWarning, match="the reference is off by"):
        found = tuned(denoiser, (12,), 32, most=MOST)
    (outcome,) = found.report
    assert outcome.evaluations <= MOST
    assert outcome.ratio < 0.8
    assert any(numbers.further for numbers in found.plans[12].numbers)


def test_it_costs_what_was_said():
    denoiser = Counting(fs.EDM())
    told = []
    found = tuned(denoiser, (3, 5), progress=lambda done, total: told.append((done, total)))
    assert all(outcome.evaluations <= 1500 for outcome in found.report)
    reference = SEEDS * 63
    report = sum(2 * outcome.calls * SEEDS // 2 for outcome in found.report)
    assert denoiser.asked == reference + report + sum(outcome.evaluations for outcome in found.report)
    assert denoiser.asked <= cost((3, 5), SEEDS, 1500) == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


def test_the_report_is_of_the_held_out_half():
    denoiser = PROBLEM.denoiser(fs.EDM())
    found = tuned(denoiser)
    noise = fs.unit_noise(range(SEEDS // 2, SEEDS), SHAPE, dtype=torch.float64)
    exact = fs.sample(denoiser, noise, nfe=42)
    for solver, said in ((found, found.report[0].tuned), (fs.EVODiff(), found.report[0].default)):
        error = (fs.sample(denoiser, noise, nfe=5, solver=solver) - exact).square().mean().sqrt()
        assert float(error) == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_an_interrupted_one_goes_on_to_the_same_file(tmp_path, share):
    whole = Counting(fs.EDM())
    tuned(whole, out=tmp_path / "whole.json", fingerprint="abc")
    broken = Counting(fs.EDM(), share * whole.asked)
    with pytest.raises(KeyboardInterrupt):
        tuned(broken, out=tmp_path / "plan.json", fingerprint="abc")
    assert not (tmp_path / "plan.json").exists()
    rest = Counting(fs.EDM())
    tuned(rest, out=tmp_path / "plan.json", fingerprint="abc")
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json") == ["plan.json", "whole.json"]
    assert rest.asked < whole.asked * (1.6 - share)  # no more than one round is made again


def test_what_a_search_for_other_numbers_has_kept_is_not_taken(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(tuning, "VERSION", tuning.VERSION - 1)
        with pytest.raises(KeyboardInterrupt):
            tuned(Counting(fs.EDM(), 1500), out=tmp_path / "plan.json", fingerprint="abc")
    with pytest.raises(FileExistsError, match=r"choose another out \(--out\), or overwrite=True"):
        tuned(Counting(fs.EDM()), out=tmp_path / "plan.json", fingerprint="abc")


def test_an_error_of_the_denoiser_is_its_own():
    with pytest.raises(RuntimeError, match="out of memory"):
        tuned(Counting(fs.EDM(), 1200, RuntimeError("out of memory")))


@pytest.mark.parametrize("after", [0, SEEDS * 63, SEEDS * 63 + 300, SEEDS * 63 + 800])
def test_nan_is_one_error(after):
    """Wherever it comes: what a default cannot do either is no plan's fault."""
    with pytest.raises(fs.DenoiserError, match="NaN or inf"):
        tuned(Counting(fs.EDM(), after, math.nan))


def test_a_plan_that_diverges_is_not_taken():
    """Of a denoiser that knows no levels but those of the default and the reference."""
    schedule = fs.EDM()
    known = {node.time for calls in (5, 21, 42) for node in fs.focused(schedule, calls)}

    def denoiser(x, t):
        near = min(abs(t / time - 1) for time in known) < 1e-9
        return PROBLEM.denoiser(schedule)(x, t) * (1 if near else math.nan)

    found = tuned(denoiser, schedule=schedule)
    x = fs.sample(denoiser, fs.unit_noise([0], SHAPE, dtype=torch.float64), nfe=5, solver=found, schedule=schedule)
    assert bool(x.isfinite().all())


def test_batches_of_one_are_enough():
    found = tuned(PROBLEM.denoiser(fs.EDM()), seeds=4, batch=1)
    assert found.report[0].evaluations > 0


@pytest.mark.parametrize("calls", [2, 3])
def test_very_few_calls(calls):
    found = tuned(PROBLEM.denoiser(fs.EDM()), (calls,))
    assert found.report[0].calls == calls
    denoiser = Counting(fs.EDM())
    fs.sample(denoiser, fs.unit_noise([0], SHAPE), nfe=calls, solver=found)
    assert denoiser.asked == calls


@pytest.mark.parametrize("schedule", [fs.EDM(), fs.Flow()], ids=str)
def test_rows_are_bounded_whatever_is_found(schedule, free_end):
    """So that bounded answers lead to bounded samples; no number changes the default's rows where it is 0."""
    search = Search(6, schedule, [], lambda x: x, None, None)
    generator = np.random.default_rng(0)
    for size in (0.0, 0.1, 10.0):
        v = size * generator.standard_normal(len(search.slots))
        v[[slot.kind in ("family", "node") for slot in search.slots]] = 0
        v[[slot.kind == "told" for slot in search.slots]] *= 1e-3  # what is told must not meet
        nodes, stages = search._plan(v)
        for (s, t), stage in zip(pairwise(nodes), stages, strict=True):
            for node, split in ((t, stage.predict), (s, stage.correct)):
                if split is not None:
                    assert abs(split.lead) <= BOUND * node.alpha * (1 + 1e-12)
                    assert sum(map(abs, split.rest)) <= BOUND * node.alpha * (1 + 1e-12)
        if not size:
            assert stages == list(fs.EVODiff().plan(schedule, nodes))


def test_levels_that_are_told_do_not_meet():
    """Or a time would name two calls."""
    search = Search(6, fs.EDM(), [], lambda x: x, None, None)
    nodes, _ = search._plan(np.zeros(len(search.slots)))
    gap = nodes[3].lam - nodes[2].lam
    for share in (0.9, 1.1):
        v = np.zeros(len(search.slots))
        v[search.slots.index(Slot("told", 2))] = share * gap
        if share < 1:
            found, _ = search._plan(v)
            assert [node.lam for node in found] == pytest.approx([node.lam for node in nodes])
            assert fs.EDM().node(found[2].time).lam == pytest.approx(nodes[2].lam + share * gap)
        else:
            with pytest.raises(Beyond):
                search._plan(v)


def test_denoisers_of_their_seeds():
    """Each batch is told its seeds, in order, and its size never changes."""
    asked = []

    def of(seeds):
        asked.append(seeds)
        denoise = PROBLEM.denoiser(fs.EDM())

        def denoiser(x, t):
            assert len(x) == len(seeds)
            return denoise(x, t)

        return denoiser

    tuned(of, schedule=fs.EDM(), by_seed=True, batch=6)
    assert asked == [list(range(6)), [6, 7], list(range(8, 14)), [14, 15]]


def test_nothing_is_kept_where_there_is_nothing_to_gain():
    """Every plan is exact for data of one point."""
    found = tuned(fs.as_denoiser(lambda x, t: torch.ones_like(x), "sample", fs.EDM()))
    assert not found.report[0].kept
    assert found.report[0].ratio == 1
    assert found.plans == {}


def test_an_objective_may_be_anything_that_is_seen_of_samples():
    denoiser = PROBLEM.denoiser(fs.EDM())
    means = tuned(denoiser, objective=lambda x: x.flatten(2).mean(2))
    assert means.facts["objective"] != "rmse"
    assert means.plans != tuned(denoiser).plans
    assert tuned(denoiser, objective="details").facts["objective"] == "details"


def test_details_are_lost_where_an_image_is_blurred():
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    sizes = [details(each)[:, 3 * 16 * 16 :].mean() for each in (x, blurred)]
    assert sizes[1] < 0.6 * sizes[0]  # means of 9 independent pixels have differences of sqrt(3) / 9 of the size
    assert torch.equal(details(x)[:, : 3 * 16 * 16], x.flatten(1))


def test_a_file_is_what_was_found(tmp_path):
    found = tuned(PROBLEM.denoiser(fs.EDM()), out=tmp_path / "plan.json", fingerprint="abc")
    assert Tuned.load(tmp_path / "plan.json", schedule=fs.EDM(), fingerprint="abc") == found


@pytest.mark.parametrize("changes", [{"nfe": (4,)}, {"fingerprint": "xyz"}, {"batch": 3}, {"objective": lambda x: x}])
def test_a_plan_is_not_replaced_unless_asked(tmp_path, changes):
    out, denoiser = tmp_path / "plan.json", Counting(fs.EDM())
    tuned(Counting(fs.EDM()), out=out, fingerprint="abc")
    before = out.read_bytes()
    asked = {"out": out, "fingerprint": "abc", **changes}
    with pytest.raises(FileExistsError, match=r"plan.json is there, and is not what is asked for: choose another out"):
        tuned(denoiser, **asked)
    assert (denoiser.asked, out.read_bytes()) == (0, before)
    found = tuned(denoiser, overwrite=True, **asked)
    assert Tuned.load(out) == found == tuned(Counting(fs.EDM()), **changes | {"fingerprint": asked["fingerprint"]})
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_finished_plan_is_read_and_not_measured_again(tmp_path):
    out, again, told = tmp_path / "plan.json", Counting(fs.EDM()), []
    found = tuned(Counting(fs.EDM()), out=out, fingerprint="abc")
    before = out.read_bytes()
    assert tuned(again, out=out, fingerprint="abc", progress=lambda *_: told.append(1)) == found
    assert (again.asked, told, out.read_bytes()) == (0, [], before)


def test_what_a_reference_is_off_by_is_said_of_a_plan_that_is_read_too(tmp_path):
    denoiser = gaussian(SHAPE).denoiser(fs.EDM())
    for _ in range(2):
        with pytest.warns(UserWarning, match="the reference is off by") as warned:
            tuned(denoiser, (12,), 32, most=MOST, out=tmp_path / "plan.json", fingerprint="abc")
        assert warned[0].filename.endswith("test_tuning.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nfe": ()}, r"nfe must be budgets of 2 calls or more.*\(\)"),
        ({"nfe": (1, 5)}, "nfe must be budgets of 2 calls or more"),
        ({"seeds": 3}, "seeds must be 4 or more"),
        ({"objective": "lpips"}, "objective must be one of rmse, details, or a function; got 'lpips'"),
        ({"most": 0}, "most must be at least 200 .* batch at least 1"),
        ({"batch": 0}, "most must be at least 200 .* batch at least 1"),
        ({"out": "plan.json"}, "out needs a fingerprint"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_call(changes, message):
    denoiser = Counting(fs.EDM())
    with pytest.raises(ValueError, match=message):
        tuned(denoiser, **changes)
    assert denoiser.asked == 0


@pytest.mark.parametrize("changes", [{"nfe": 5}, {"nfe": (5.5,)}, {"nfe": "58"}])
def test_budgets_are_integers(changes):
    with pytest.raises(TypeError, match="seeds and nfe must be lists of integers"):
        tuned(PROBLEM.denoiser(fs.EDM()), **changes)


def test_a_schedule_is_needed():
    with pytest.raises(TypeError, match="schedule is needed"):
        tuned(lambda x, t: x)
    with pytest.raises(TypeError, match="denoiser must be a function"):
        tuned(3)


def test_another_objective_of_the_same_name_does_not_go_on_from_the_first(tmp_path):
    """Functions are told apart by what they make: all lambdas have one name."""
    out = tmp_path / "plan.json"
    with pytest.raises(KeyboardInterrupt):
        tuned(Counting(fs.EDM(), fails_after=1800), out=out, fingerprint="abc", objective=lambda x: x)
    with pytest.raises(FileExistsError, match=r"data was .*or overwrite=True"):
        tuned(Counting(fs.EDM()), out=out, fingerprint="abc", objective=lambda x: x**3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"most": math.inf}, "most and batch integers"),
        ({"most": 100}, r"most must be at least 200 for 5 calls and 8 seeds"),
        ({"objective": lambda x: x.sum(1)[:1]}, r"objective must make \(B, k\)"),
        ({"objective": lambda x: x * math.nan}, r"objective must make \(B, k\), finite"),
        ({"progress": 3}, "progress a function"),
        ({"fingerprint": 5}, "fingerprint must be words"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_the_first_call(wrong, message):
    denoiser = Counting(fs.EDM())
    with pytest.raises((ValueError, TypeError), match=message):
        tuned(denoiser, **wrong)
    assert denoiser.asked == 0
