"""A plan that is kept is the one that would be made."""

from dataclasses import dataclass, field, replace

import pytest

import fewstep as fs
from fewstep.solvers.core import planned as module
from fewstep.solvers.core.planned import forget, planned
from table import every_solver

VP = fs.VPLinear()
NODES = fs.focused(VP, 6)


def numbers(thing):
    """All that a plan consists of, if it is tuples and ranges of numbers and names."""
    if isinstance(thing, tuple | range):
        return [number for part in thing for number in numbers(part)]
    assert thing is None or type(thing) in (int, float, bool, str), f"{thing!r} is no number"
    return [thing]


@every_solver
def test_what_is_kept_is_numbers_and_the_same_plan_as_made_anew(entry):
    first, second = planned(entry.solver, VP, NODES), planned(replace(entry.solver), fs.VPLinear(), tuple(NODES))
    if hasattr(entry.solver, "statistics"):  # whose arrays anybody can change
        assert second is not first
        return
    assert second is first
    assert numbers(first) == numbers(tuple(entry.solver.plan(VP, NODES)))


@pytest.mark.parametrize("steps", [5, 6])
@pytest.mark.parametrize("schedule", [VP, fs.VPLinear(0.1, 19.0), fs.VPLinear(data_std=2.0), fs.Flow()], ids=repr)
@pytest.mark.parametrize("solver", [fs.EVODiff(), fs.EVODiff(data_std=3.0), fs.UniPC(3), fs.Stochastic(fs.DDIM(), 0.5)])
def test_whatever_differs_has_its_own_plan(solver, schedule, steps):
    planned(fs.EVODiff(), VP, NODES)
    nodes = fs.focused(schedule, steps)
    assert planned(solver, schedule, nodes) == tuple(solver.plan(schedule, nodes))


def test_the_number_of_calls_is_part_of_what_is_asked():
    nodes = fs.log_snr(VP, 4)
    plans = [planned(fs.Heun(), VP, nodes, nfe) for nfe in (None, 8, 7)]
    assert list(map(len, plans)) == [8, 8, 7]


@dataclass(frozen=True)
class Weighing(fs.DDIM):
    """DDIM with something that can be changed, or not even hashed."""

    weights: object = None

    def plan(self, schedule, nodes, nfe=None):
        return [stage._replace(noise=float(self.weights[0])) for stage in super().plan(schedule, nodes, nfe)]


class Weights(list):
    __hash__ = object.__hash__


@pytest.mark.parametrize("kind", [list, Weights])
def test_what_can_change_is_planned_each_time(kind):
    solver = Weighing(weights=kind([1.0]))
    assert planned(solver, VP, NODES)[0].noise == 1
    solver.weights[0] = 2.0
    assert planned(solver, VP, NODES)[0].noise == 2


class Told(fs.DDIM):
    """No dataclass of its own, so that it is equal to any other of its kind."""

    def __init__(self, noise):
        super().__init__()
        object.__setattr__(self, "own", noise)

    def plan(self, schedule, nodes, nfe=None):
        return [stage._replace(noise=self.own) for stage in fs.DDIM.plan(self, schedule, nodes, nfe)]


@dataclass(frozen=True)
class Aside(fs.DDIM):
    own: object = field(default=0.0, compare=False)

    plan = Told.plan


@dataclass(frozen=True)
class Alike(Aside):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@pytest.mark.parametrize("kind", [Told, lambda own: Aside(own=own), lambda own: Alike(own=own)])
def test_what_says_that_it_is_equal_and_is_not_has_its_own_plan(kind):
    one, other = kind(1.0), kind(2.0)
    assert one == other
    assert [planned(each, VP, NODES)[0].noise for each in (one, other, one)] == [1, 2, 1]
    assert planned(one, VP, NODES) is planned(kind(1.0), VP, NODES)


def test_kinds_of_numbers_are_told_apart():
    one, other = (planned(Aside(own=own), VP, NODES)[0].noise for own in (1, True))
    assert (type(one), type(other)) == (int, bool)


def test_stages_that_hold_something_are_made_for_each_run():
    """What one run leaves in them is not seen by the next, or by one beside it."""

    class Counting:
        def __init__(self, stage):
            self.stage, self.node, self.noise, self.calls = stage, stage.node, 0.0, 0

        def __call__(self, state, x, denoised):
            self.calls += 1
            return self.stage(state, x, denoised)

    @dataclass(frozen=True)
    class Own(fs.DDIM):
        def plan(self, schedule, nodes, nfe=None):
            return [Counting(stage) for stage in super().plan(schedule, nodes, nfe)]

    one, other = (planned(Own(), VP, NODES) for _ in range(2))
    assert not set(map(id, one)) & set(map(id, other))


def test_errors_of_types_in_a_plan_are_raised_at_once():
    calls = []

    @dataclass(frozen=True)
    class Broken(fs.DDIM):
        def plan(self, schedule, nodes, nfe=None):
            calls.append(nfe)
            raise TypeError("of mine")

    with pytest.raises(TypeError, match="of mine"):
        planned(Broken(), VP, NODES)
    assert len(calls) == 1


def test_a_schedule_that_can_change_is_planned_for_each_time():
    class Scaled(fs.Schedule):
        t_max, t_min = 80.0, 0.002

        def node(self, time):
            return fs.EDM().node(time)

        def time_at(self, lam):
            return fs.EDM().time_at(lam)

    schedule, nodes = Scaled(), fs.karras(fs.EDM(), 6)
    for std in (0.5, 3.0):
        schedule.data_std = std
        assert planned(fs.EVODiff(), schedule, nodes) == tuple(fs.EVODiff(data_std=std).plan(fs.EDM(), nodes))


def test_errors_of_a_plan_are_its_own():
    for _ in range(2):
        with pytest.raises(ValueError, match="EVODiff needs nodes of falling noise") as caught:
            planned(fs.EVODiff(), VP, NODES[::-1][1:])
        assert caught.value.__context__ is None


def test_few_and_short_plans_are_kept():
    forget()
    first = planned(fs.DDIM(), VP, NODES)
    for steps in range(1, module.KEPT + 1):
        planned(fs.DDIM(), VP, fs.log_snr(VP, steps))
    assert module._kept.cache_info().currsize == module.KEPT
    assert planned(fs.DDIM(), VP, NODES) is not first
    long = fs.log_snr(VP, module.LONGEST)
    assert planned(fs.DDIM(), VP, long) is not planned(fs.DDIM(), VP, long)


def test_a_run_that_is_like_the_last_is_not_planned_again(monkeypatch):
    made, plan = [], fs.EVODiff.plan
    monkeypatch.setattr(fs.EVODiff, "plan", lambda self, *args: made.append(args) or plan(self, *args))
    for _ in range(3):
        fs.sampling.plan(fs.EDM(), fs.EVODiff(), nfe=5)
    assert len(made) == 1
