"""The page docs/cheaper.md: error against seconds of every combination of calls, caching and precision.

With --model of a model of yours, the same of that: a folder that `load_model` reads, of classes or of prompts.

A run's seconds are those of its calls, whole and with reuse, each measured beside the others in one process: CPU time
of one thread, in turn, the median of many rounds. So the machine's other work changes none of the ratios. What is
measured is kept in a folder, and an interrupted measurement goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from fewstep import Tuned, cheaper, tune
from fewstep.adapters import load_model
from fewstep.bench.markdown import table
from fewstep.cheaper import CachePlan
from fewstep.cheaper.network import with_network
from fewstep.files import check_writable, write_all
from fewstep.grid import focused
from fewstep.prediction import Denoiser
from fewstep.sampling import sample, unit_noise
from fewstep.solvers import DDIM, DPMSolverPP, EVODiff, Solver, UniPC
from fewstep.store import Store

from . import hooks
from .command import packaged, say
from .figures import Axis, Series, drawing

__all__ = ["Point", "Rule", "front", "main", "page", "points", "rules"]

SOLVERS: Mapping[str, Solver] = {
    "EVODiff": EVODiff(),
    "UniPC-2": UniPC(2),
    "DPM-Solver++ 2M": DPMSolverPP(2),
    "DDIM": DDIM(),
}
OURS, PEER, TUNED = "EVODiff", "UniPC-2", "EVODiff, tuned"
COLOURS = {
    "EVODiff": "#0072b2",
    "UniPC-2": "#d55e00",
    "DPM-Solver++ 2M": "#009e73",
    "DDIM": "#cc79a7",
    TUNED: "#8b6bd1",
}
GUIDANCES = (1.0, 4.0)
CALLS = (8, 10, 15, 20)  # of plans and of DeepCache's rule
WHOLE = range(3, 21)
CHEAP_CALLS = (8, 10, 12, 15)  # of the other precisions
TUNED_CALLS, TUNED_SEEDS = (8, 9, 10), range(1000, 1032)
TARGET = 10  # calls of EVODiff, whose error is to be reached
INTERVALS = (2, 3)
SEEDS, HELD_OUT = range(1000, 1004), range(8)  # planned on, measured on
REFERENCE = 64
ROUNDS = 15
PROMPT = "a photograph of a horse"  # of models that take one
LEAST = 0.01  # of a run's error, that what is added to it is counted as
PLAIN, HALF, FEWER = "float32", "bfloat16", "Winograd"
CACHED = (PLAIN, HALF)
FUSED = f"{FEWER}, compiled"
OPTIONS: dict[str, Any] = {"freezing": True, "cpp_wrapper": True}  # of torch.compile: no Python between its parts
SIDE = 2048  # of the matrices by whose product a type is timed
TOGETHER = (1, 2, 4, 8, 16)  # images
FOLDER = Path(tempfile.gettempdir()) / "fewstep-cheaper"


class Point(NamedTuple):
    """A run: its solver, calls, caching and precision, seconds an image and error."""

    solver: str
    guidance: float
    calls: int
    caching: str
    precision: str
    seconds: float
    error: float

    @property
    def name(self) -> str:
        return ", ".join(
            [self.solver, f"{self.calls} calls", *(each for each in (self.caching, self.precision) if each)]
        )


class Rule(NamedTuple):
    """A run by DeepCache's rule, and the best of ours within its seconds: what they add to the error of whole calls."""

    solver: str
    guidance: float
    calls: int
    interval: int
    depth: int
    seconds: float
    error: float
    whole: float
    ours: float

    @property
    def ratio(self) -> float:
        """Of what ours adds over what the rule adds."""
        least = LEAST * self.whole
        return max(self.ours - self.whole, least) / max(self.error - self.whole, least)


class Kept:
    """What is measured once, by name, in a folder."""

    def __init__(self, store: Store):
        self.store = store

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        file = f"{name}.json"
        if not self.store.holds(file):
            say(name)
            self.store.write({file: json.dumps(make()).encode()})
        return json.loads(self.store.read(file))


def precisions(model: Any) -> dict[str, Any]:
    found = {PLAIN: model, HALF: cheaper.half(model), "float16": cheaper.half(model, dtype=torch.float16)}
    try:
        found[FEWER] = cheaper.winograd(model)
        if shutil.which("c++"):
            network: Any = torch.compile(found[FEWER].network, options=OPTIONS)
            found[FUSED] = with_network(model, network)
        else:
            say("without a compiler of C++ nothing is compiled")
    except ValueError as error:
        say(f"no convolution is Winograd's: {error}")
    try:
        import torchao  # noqa: F401
    except ImportError:
        say("without torchao (pip install 'fewstep[cheaper]') no weights of 8 bits are measured")
        return found
    return {**found, "int8": cheaper.quantized(model), "int8-dynamic": cheaper.quantized(model, "int8-dynamic")}


def conditioned(model: Any, seeds: Sequence[int], guidance: float = 1.0) -> Denoiser:
    """A class for each seed in turn, or one prompt for all."""
    if model.classes:
        return model.conditioned([seed % len(model.classes) for seed in seeds], guidance)  # type: ignore[no-any-return]
    return model.prompted(PROMPT, guidance)  # type: ignore[no-any-return]


def depths(model: Any) -> range:
    """The two cheapest cuts; none if the network has none."""
    try:
        return cheaper.depths(model.network)[:2]
    except ValueError as error:
        say(f"nothing is cached: {error}")
        return range(0)


def seconds(models: Mapping[str, Any], seeds: range | None = None) -> dict[str, float]:
    """CPU seconds an image of a whole call, "float32", and of one that reuses, "float32 1" at depth 1."""
    seeds = HELD_OUT if seeds is None else seeds
    plain = models[PLAIN]
    _, *levels, _ = focused(plain.schedule, 3)
    times = [level.time for level in levels]
    x = unit_noise(seeds, plain.shape) * levels[0].sigma
    timed: dict[str, Callable[[], float]] = {}
    for name, model in models.items():
        denoiser = conditioned(model, seeds)
        timed[name] = partial(_taken, denoiser, x, times)
        for depth in depths(plain) if name in CACHED else ():
            cached = cheaper.Cached(denoiser, model.network, times=times, weights=(None, (1.0,)), depth=depth)
            timed[f"{name} {depth}"] = partial(_taken, cached, x, times)
    found: dict[str, list[float]] = {name: [] for name in timed}
    with torch.no_grad():
        for _, (name, run) in product(range(ROUNDS), timed.items()):
            found[name].append(run() / len(x))
    return {name: statistics.median(each) for name, each in found.items()}


def _taken(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> float:
    """The seconds of the second call, after a first."""
    denoiser(x, times[0])
    began = time.thread_time()
    denoiser(x, times[1])
    return time.thread_time() - began


def together(models: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The seconds of Winograd's call over those of a plain one, by the images that are evaluated together."""
    found = []
    for images in TOGETHER if FEWER in models else ():
        both = {name: dataclasses.replace(models[name], batch=images) for name in (PLAIN, FEWER)}
        taken = seconds(both, range(images))
        found.append((images, taken[FEWER] / taken[PLAIN]))
    return found


def rates() -> dict[str, float]:
    """Operations a second of a matrix product, in 10^9, of each type."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    given = {str(dtype).removeprefix("torch."): torch.randn(SIDE, SIDE).to(dtype) for dtype in types}
    found: dict[str, list[float]] = {name: [] for name in given}
    for _, (name, x) in product(range(ROUNDS), given.items()):
        began = time.thread_time()
        x @ x
        found[name].append(2 * SIDE**3 / (time.thread_time() - began) / 1e9)
    return {name: statistics.median(each) for name, each in found.items()}


class Bench:
    """One model at one guidance."""

    def __init__(self, models: Mapping[str, Any], guidance: float, taken: Mapping[str, float], once: Kept):
        self.models, self.guidance, self.taken, self.once = models, guidance, taken, once
        self.plain = models[PLAIN]
        self.noise = unit_noise(HELD_OUT, self.plain.shape)
        self.depths = depths(self.plain)
        self.evaluations = 1 if guidance == 1 else 2  # of the network, in a call
        self.solvers = {**SOLVERS, TUNED: self.tuned()} if TUNED_CALLS else SOLVERS
        self._exact: Tensor | None = None

    def tuned(self) -> Tuned:
        """On other seeds. Its file keeps what is known, beside the others."""
        file = self.once.store.folder / f"tuned-{self.guidance:g}.json"
        if not file.exists():
            say(file.stem)
            tune(
                partial(self.denoiser, self.plain), self.plain.schedule, shape=self.plain.shape, nfe=TUNED_CALLS,
                seeds=TUNED_SEEDS, by_seed=True, batch=len(HELD_OUT),
                fingerprint=f"{self.plain.fingerprint}, guidance {self.guidance:g}", out=file,
            )  # fmt: skip
        return Tuned.load(file)

    def denoiser(self, model: Any, seeds: Sequence[int]) -> Denoiser:
        return conditioned(model, seeds, self.guidance)

    def error(self, of: Any, solver: Solver, calls: int) -> float:
        if self._exact is None:
            self._exact = sample(self.denoiser(self.plain, HELD_OUT), self.noise, nfe=REFERENCE)
        got = sample(of, self.noise, nfe=calls, solver=solver, schedule=self.plain.schedule)
        return float((got - self._exact).square().mean().sqrt())

    def whole(self, solver: str, calls: int, precision: str = PLAIN) -> Point:
        name = f"{solver}-{self.guidance:g}-{calls}-{precision}"
        off = self.once(
            name, lambda: self.error(self.denoiser(self.models[precision], HELD_OUT), self.solvers[solver], calls)
        )
        told = "" if precision == PLAIN else precision
        return Point(solver, self.guidance, calls, "", told, self.evaluations * calls * self.taken[precision], off)

    def cached(self, solver: str, plan: CachePlan, caching: str, precision: str, name: str) -> Point:
        model = self.models[precision]
        calls = len(plan.times)
        off = self.once(
            f"{solver}-{self.guidance:g}-{calls}-{name}-{precision}",
            lambda: self.error(plan.wrap(self.denoiser(model, HELD_OUT), model.network), SOLVERS[solver], calls),
        )
        reused = sum(each is not None for each in plan.weights)
        taken = (calls - reused) * self.taken[precision] + reused * self.taken[f"{precision} {plan.depth}"]
        told = "" if precision == PLAIN else precision
        return Point(solver, self.guidance, calls, caching, told, self.evaluations * taken, off)

    def planned(self, solver: str, calls: int) -> CachePlan | None:
        """Measured on other seeds; None where it is whole calls."""

        def make() -> dict[str, Any]:
            noise, network, schedule = unit_noise(SEEDS, self.plain.shape), self.plain.network, self.plain.schedule
            denoiser = self.denoiser(dataclasses.replace(self.plain, batch=len(SEEDS)), SEEDS)
            plan = cheaper.plan_cache(
                denoiser,
                network,
                noise,
                nfe=calls,
                solver=SOLVERS[solver],
                schedule=schedule,
                cuts=self.depths,
            )
            return {
                "times": plan.times,
                "weights": plan.weights,
                "depth": plan.depth,
                "cost": plan.cost,
                "told": str(plan),
            }

        found = self.once(f"plan-{solver}-{self.guidance:g}-{calls}", make)
        weights = tuple(None if each is None else tuple(each) for each in found["weights"])
        if not any(weights):
            return None
        return CachePlan(SOLVERS[solver], tuple(found["times"]), weights, found["depth"], found["cost"])


def points(bench: Bench) -> Iterator[Point]:
    """Every combination."""
    for solver in SOLVERS:
        yield from (bench.whole(solver, calls) for calls in WHOLE)
        for precision in bench.models:
            if precision != PLAIN:
                yield from (bench.whole(solver, calls, precision) for calls in CHEAP_CALLS)
        for calls in CALLS if bench.depths else ():
            plan = bench.planned(solver, calls)
            if plan is None:
                continue
            which = ", ".join(str(k) for k, each in enumerate(plan.weights) if each is not None)
            caching = f"reuse in {which} at depth {plan.depth}"
            for precision in CACHED:
                yield bench.cached(solver, plan, caching, precision, "planned")
    for precision in bench.models if TUNED_CALLS else ():
        yield from (bench.whole(TUNED, calls, precision) for calls in TUNED_CALLS)


def rules(bench: Bench, measured: Sequence[Point]) -> Iterator[Rule]:
    """DeepCache's, and the best that we measured of that solver in float32 for the same seconds."""
    for solver in SOLVERS:
        ours = [each for each in measured if each.solver == solver and not each.precision]
        for calls in CALLS:
            (whole,) = (each.error for each in ours if each.calls == calls and not each.caching)
            for interval in INTERVALS:
                for depth in bench.depths:
                    schedule = bench.plain.schedule
                    plan = cheaper.every(SOLVERS[solver], schedule, calls, interval, depth, left=math.nan)
                    rule = bench.cached(solver, plan, "", PLAIN, f"every-{interval}-{depth}")
                    cheap = [each for each in ours if each.seconds <= rule.seconds * (1 + 1e-9)]
                    quickest = min(ours, key=lambda each: each.seconds)  # where the rule is quicker than all of ours
                    best = min(each.error for each in cheap or [quickest])
                    yield Rule(solver, bench.guidance, calls, interval, depth, rule.seconds, rule.error, whole, best)


def front(measured: Sequence[Point]) -> list[Point]:
    """Those that no other is both faster and better than, from the fastest."""
    found: list[Point] = []
    for each in sorted(measured, key=lambda point: (point.seconds, point.error)):
        if not found or each.error < found[-1].error:
            found.append(each)
    return found


def seconds_for(measured: Sequence[Point], error: float) -> float:
    """The least seconds of whole calls of these points for an error, log-linear between whole numbers of calls."""
    line = front(measured)
    for faster, slower in pairwise(line):
        if slower.error <= error <= faster.error:
            part = math.log(faster.error / error) / math.log(faster.error / slower.error)
            return float(faster.seconds * (slower.seconds / faster.seconds) ** part)
    return math.nan


def page(model: Any, folder: Path) -> tuple[str, str]:
    """The page as Markdown, and its picture."""
    models = precisions(model)
    settings = {
        "seeds": list(SEEDS), "held out": list(HELD_OUT), "reference": REFERENCE, "fewstep.cheaper": 3,
        "precisions": list(models), "torch": torch.__version__, "model": model.fingerprint,
    }  # fmt: skip
    with Store(folder, settings, argument="--results") as store:
        once = Kept(store)
        taken = once("seconds", lambda: seconds(models))
        by_images, speed = once("together", lambda: together(models)), once("rates", rates)
        theirs = once("hooks", lambda: [list(hooks.hooks()), hooks.without()])
        told = once("differences", lambda: {name: _difference(model, other) for name, other in models.items()})
        benches = [Bench(models, guidance, taken, once) for guidance in GUIDANCES]
        found = {bench.guidance: list(points(bench)) for bench in benches}
        ruled = [rule for bench in benches for rule in rules(bench, found[bench.guidance])]
        said = {
            (solver, bench.guidance, calls): once(f"plan-{solver}-{bench.guidance:g}-{calls}", dict)["told"]
            for bench in benches
            for solver in SOLVERS
            for calls in (CALLS if bench.depths else ())
        }
    text = _page(taken, by_images, speed, theirs, told, found, ruled, said)
    return text, _picture(found[GUIDANCES[0]])


def _difference(model: Any, other: Any) -> dict[str, Any]:
    found = cheaper.difference(model, other, seeds=HELD_OUT, of=lambda m: conditioned(m, HELD_OUT))
    _, level, _ = focused(model.schedule, 2)
    alone, together = (
        conditioned(other, seeds)(unit_noise(seeds, other.shape) * level.sigma, level.time)[:1]
        for seeds in (HELD_OUT[:1], HELD_OUT)
    )
    return {
        "run": found.run, "memory": found.memory,
        "levels": [list(level) for level in found.levels], "mates": float((alone - together).abs().max()),
    }  # fmt: skip


def _page(
    taken: Mapping[str, float],
    by_images: Sequence[tuple[int, float]],
    speed: Mapping[str, float],
    theirs: tuple[Sequence[hooks.Hook], Sequence[str]],
    told: Mapping[str, Any],
    found: Mapping[float, Sequence[Point]],
    ruled: Sequence[Rule],
    said: Mapping[tuple[str, float, int], str],
) -> str:
    parts = [TOP.format(machine=platform.machine()), _advice(taken, found), PRECISION]
    rows = [
        [
            name,
            f"{taken[name] / taken[PLAIN]:.2f}",
            f"{each['memory']:.2f}",
            f"{each['run']:.2g}",
            f"{each['mates']:.1g}",
        ]
        for name, each in told.items()
    ]
    parts.append(table(["", "seconds", "weights' bytes", f"error, {TARGET} calls", "batch mates"], rows))
    names = [name for name in told if name != PLAIN]
    levels = [
        [f"{row[0]:.3g}", *(f"{told[name]['levels'][i][1]:.2g}" for name in names)]
        for i, row in enumerate(told[PLAIN]["levels"])
    ]
    parts += [BY_LEVEL, table(["sigma/alpha", *names], levels), SLOWER]
    if taken[HALF] > taken[PLAIN]:
        each = {name: f"{rate:.0f}" for name, rate in speed.items()}
        parts.append(textwrap.fill(SLOWER_HERE.format(side=SIDE, **each), 120) + "\n")
    if by_images:
        rows = [[str(images), f"{ratio:.2f}"] for images, ratio in by_images]
        parts += [WINOGRAD, table(["images together", "seconds"], rows), WINOGRAD_NOT]
    if said:
        cuts = [name.split()[1] for name in taken if name.startswith(f"{PLAIN} ")]
        ratios = [[depth, f"{taken[f'{PLAIN} {depth}'] / taken[PLAIN]:.2f}"] for depth in cuts]
        parts += [CACHING, table(["depth", "seconds of a whole call"], ratios)]
        parts += [PLANS.format(planned=len(SEEDS), seeds=len(HELD_OUT)), _plans(found, said), DEEPCACHE, _rules(ruled)]
        parts.append(hooks.report(*theirs))
    parts.append(ALL.format(seeds=len(HELD_OUT), tuned=len(TUNED_SEEDS)))
    parts += [_all(guidance, each) for guidance, each in found.items()]
    return "\n".join(parts)


def _advice(taken: Mapping[str, float], found: Mapping[float, Sequence[Point]]) -> str:
    """What to do, from what was found."""
    lines = []
    for guidance, measured in found.items():
        base = _one(measured, OURS, TARGET)
        best = min((each for each in measured if each.error <= base.error), key=lambda each: each.seconds)
        peer = [each for each in measured if each.solver == PEER and not each.caching and not each.precision]
        theirs = seconds_for(peer, base.error)
        ours, peers = (best.seconds / of for of in (base.seconds, theirs))
        said = f"""- Guidance {guidance:g}: {TARGET} whole calls of EVODiff leave an error of {base.error:.2g}. The
            quickest way to it is {best.name}, in {ours:.2f} of their seconds"""
        said += (
            f" and {peers:.2f} of those that {PEER} needs." if math.isfinite(theirs) else f"; {PEER} does not reach it."
        )
        lines.append(textwrap.fill(" ".join(said.split()), 120, subsequent_indent="  "))
    names = [name for name in taken if name.rpartition(" ")[0] not in CACHED]  # of whole calls
    least = min(names, key=lambda name: taken[name])
    share = taken[least] / taken[PLAIN]
    gain = "stay in float32" if least == PLAIN else f"take {least}, {share:.2f} of the seconds here"
    head = f"""**In one line**: make few calls of EVODiff, tuned to the model if you keep it; {gain}; and where nothing
        is compiled let `plan_cache` say whether to reuse."""
    return "\n".join([textwrap.fill(" ".join(head.split()), 120), "", *lines, ""])


def _one(measured: Sequence[Point], solver: str, calls: int) -> Point:
    return next(p for p in measured if (p.solver, p.calls, p.caching, p.precision) == (solver, calls, "", ""))


def _plans(found: Mapping[float, Sequence[Point]], said: Mapping[tuple[str, float, int], str]) -> str:
    rows = []
    for solver, guidance, calls in said:
        measured = [each for each in found[guidance] if each.solver == solver and not each.precision]
        whole = [each for each in measured if not each.caching]
        own = next((each for each in measured if each.calls == calls and each.caching), None)
        base = _one(measured, solver, calls)
        if own is None:
            rows.append([solver, f"{guidance:g}", str(calls), "none", "1.00", f"{base.error:.3g}", "", ""])
            continue
        fewer = _error_at(whole, own.seconds)
        share = own.seconds / base.seconds
        rows.append(
            [
                solver,
                f"{guidance:g}",
                str(calls),
                own.caching.removeprefix("reuse in "),
                f"{share:.2f}",
                f"{own.error:.3g}",
                f"{fewer:.3g}",
                f"{own.error / fewer:.2f}",
            ]
        )
    head = ["solver", "guidance", "calls", "reuse in", "seconds", "error", "fewer whole calls", "ratio"]
    return table(head, rows)


def _error_at(whole: Sequence[Point], taken: float) -> float:
    """Of whole calls that take so many seconds, log-linear between whole numbers."""
    line = sorted(whole, key=lambda each: each.seconds)
    for less, more in pairwise(line):
        if less.seconds <= taken <= more.seconds:
            part = (taken - less.seconds) / (more.seconds - less.seconds)
            return float(less.error ** (1 - part) * more.error**part)
    return math.nan


def _rules(ruled: Sequence[Rule]) -> str:
    rows = []
    for solver in SOLVERS:
        for guidance in GUIDANCES:
            mine = [each for each in ruled if each.solver == solver and each.guidance == guidance]
            for depth in sorted({each.depth for each in mine}):
                cells = [each for each in mine if each.depth == depth]
                mean = statistics.geometric_mean(each.ratio for each in cells)
                each_calls = " ".join(f"{each.calls}/{each.interval}: {each.ratio:.2f}" for each in cells)
                rows.append([solver, f"{guidance:g}", str(depth), f"{mean:.2f}", each_calls])
            if mine:
                mean = statistics.geometric_mean(each.ratio for each in mine)
                rows.append([solver, f"{guidance:g}", "all", f"{mean:.2f}", ""])
    return table(["solver", "guidance", "depth", "geometric mean", "calls / interval: ratio"], rows)


def _all(guidance: float, measured: Sequence[Point]) -> str:
    best = set(front(measured))
    base = _one(measured, OURS, TARGET).seconds
    rows = [
        [
            each.solver, str(each.calls), each.caching, each.precision or PLAIN, f"{each.seconds / base:.3f}",
            f"{each.error:.3g}", "on the front" if each in best else "",
        ]
        for each in sorted(measured, key=lambda each: each.seconds)
    ]  # fmt: skip
    head = ["solver", "calls", "caching", "precision", f"seconds over EVODiff, {TARGET}", "error", ""]
    return f"### Guidance {guidance:g}\n\n" + table(head, rows)


def _picture(measured: Sequence[Point]) -> str:
    base = _one(measured, OURS, TARGET).seconds
    shown = [each for each in measured if each.error > 0]

    def line(some: Sequence[Point]) -> list[tuple[float, float]]:
        return [(each.seconds / base, each.error) for each in sorted(some, key=lambda each: each.seconds)]

    whole = {
        solver: line([each for each in shown if each.solver == solver and not each.caching and not each.precision])
        for solver in dict.fromkeys(each.solver for each in shown)
    }
    series = [Series(points, solver, COLOURS[solver], dots=False) for solver, points in whole.items()]
    series.append(Series(line([e for e in shown if e.caching and not e.precision]), "caching", "#a66f00", line=False))
    series.append(Series(line([e for e in shown if e.precision]), "precision", "#7f7f7f", line=False))
    values = [each.error for each in shown]
    times = [each.seconds / base for each in shown]
    across = Axis("seconds, of 10 whole calls of EVODiff in float32", min(times), max(times), (0.5, 1, 2))
    up = Axis("error", min(values), max(values), [t for t in (0.001, 0.01, 0.1) if min(values) <= t <= max(values)])
    told = "Error against seconds. Whole calls of each solver are lines; runs with caching or less precision are dots."
    return drawing("Error against seconds", told, across, up, [each for each in series if each.points])


TOP = """# Cheaper calls

For people who make few calls already and want each to cost less. You get half precision, small weights, and reuse of
features where it pays. They are copies or wrappers of a denoiser or a network, which every solver takes.

```python
from fewstep import cheaper, sample

fast = cheaper.half(model)  # bfloat16; first and last layer, norms and embeddings stay float32
small = cheaper.quantized(model, "int8")  # linear layers, by torchao: pip install '.[cheaper]'
print(cheaper.difference(model, fast))  # error by noise level
cheaper.save(small, "small.safetensors")
small = cheaper.load(model, "small.safetensors")

plan = cheaper.plan_cache(model.conditioned(labels), model.network, noise, nfe=10)
print(plan)  # what was tried, what may reuse features, and why, or that nothing may
x = sample(plan.wrap(model.conditioned(labels), model.network), noise, nfe=10)
```

**When not to use it.** Before you have chosen a solver: fewer calls of a better one save more than all of this. On a
model that is compiled: compile what is returned.

Written by `python -m benchmarks.cheaper`, here of the packaged network on {machine}, one thread; with `--model FOLDER`
of yours, of classes or of prompts. Errors are root mean squares to the converged solution. Seconds are CPU time,
measured in turn: look at their ratios only. Errors of an untrained network say nothing of a trained one.

![Error against seconds, whole calls as lines, caching and less precision as dots](figures/cheaper.svg)
"""
PRECISION = """## Precision

`half` converts linear layers and convolutions and leaves in float32 the first and the last layer, norms, and the
embedding of the time. `quantized` rounds the weights of linear layers, by torchao. It leaves the same layers as they
are, and those that are given one vector a sample, where rounding to 8 bits does harm; a run of your model shows which
they are. Convolutions are not quantised, so that a U-Net gains little; a transformer, whose weights are nearly all in
linear layers, four times in memory. `tolerance` keeps the layers whose answers, on the states of EVODiff's grid, are
off by more than it. 4-bit weights take a byte each in torchao's portable format.

"Seconds" and "weights' bytes" are over float32. "Batch mates" is how much the first of 8 images changes when it is
evaluated alone; the model here fills up its batches, so that only the effect of rounding is left.
"""
BY_LEVEL = """Root mean square error of the answer, by noise level on the path of the float network:
"""
SLOWER = """\
**When not to use it.** Where the seconds above are more than 1, the machine has no kernels for the type that beat those
of float32: then it saves memory alone. Processors with AMX and all recent GPUs have them for bfloat16. Look at
`cheaper.difference` before 4 bits.
"""
SLOWER_HERE = """\
Here it is the processor: products of {side} x {side} matrices make {float32} * 10^9 operations a second in float32,
{bfloat16} in bfloat16 and {float16} in float16, so that no kernel for convolutions, two thirds of a call, could gain by
these types.
"""
WINOGRAD = """\
## Fewer products

`winograd` computes convolutions of 3 x 3 by Winograd's F(4 x 4, 3 x 3): a quarter of the products, and two transforms
of the image. The network is the same to rounding, so that this goes with all else. Compiled, what lies between the
products is fused, and more than twice as much is gained:

```python
quick = cheaper.winograd(model)
compiled = torch.compile(quick.network, options={"freezing": True, "cpp_wrapper": True})  # minutes, and one batch size
quick = dataclasses.replace(quick, network=compiled)
```

Seconds over those of the network as it was, not compiled:
"""
WINOGRAD_NOT = """\
**When not to use it.** For single images: the transformed weights, four times as many, have to be read for each call.
On GPUs, whose library chooses Winograd itself. Where memory is short. Nothing can be reused in a network that is
compiled, below.
"""
CACHING = """\
## Caching

A call that reuses features computes the outer layers alone, and takes from earlier calls what the inner ones would say.
Of a U-Net of diffusers, or the packaged one, `depth` d recomputes what DeepCache's branch d does; of a transformer of
diffusers, the first and the last d blocks. Networks that cannot be cut so are refused. A run begins with the plan's
first time. Other times, an evaluation of the network more or fewer, and other shapes are refused; an exception drops
what was kept. Two runs of one wrapper must not be interleaved: make one for each.
"""
PLANS = """### What is planned

`plan_cache` asks of each call, from the last back to the end of the first third, whether it may reuse. It holds each
candidate against as many whole calls as the same cost buys. Features are not reused as they are: they are extrapolated
on the line through the last two in log sigma, by the share of the slope that is best. A plan's errors are geometric
means over its samples. Planned on {planned} images, measured on {seeds} others. "Seconds" are over the same number of
whole calls; the last column is over the error of whole calls in the same seconds: where it is below 1, caching pays. It
pays most for solvers whose last calls do little: UniPC-2, 2M and DDIM leave at most three quarters of the error,
EVODiff more than that.
"""
DEEPCACHE = """\
**When not to use it.** Where the plan says "none". With a solver that wastes no call there is little to win. A plan is
of one solver, number of calls, grid and guidance; another has to be planned.

Published gains of caches are over the same solver in the same number of calls. No paper that we know holds one against
fewer calls at equal cost.

### Against every second and every third call

DeepCache's package makes every second or third call whole. The table has what our best
choice for the same solver and no more seconds adds to the error of whole calls, over what that rule adds; fewer whole
calls are among our choices. At least a hundredth of the error of whole calls is counted as added. Below 1 ours adds
less. Only runs of 8 calls at depth 0 are above 1: there the rule takes fewer seconds than any of our plans, and we have
only fewer whole calls to hold against it.
"""
ALL = """## Every combination

{seeds} images. "EVODiff, tuned" has the plans that [`fewstep.tune`](tune.md) finds on {tuned} others.
"""


def main(
    out: Annotated[Path, typer.Option("--out", help="The folder of the page and of figures/.")] = Path("docs"),
    results: Annotated[Path, typer.Option(help="Measurements are kept there.")] = FOLDER,
    model: Annotated[
        str | None, typer.Option(help="A folder that load_model reads; the packaged model if none.")
    ] = None,
) -> None:
    """Measure error against seconds of a model, and write cheaper.md and its picture; an hour for the packaged one."""
    torch.set_num_threads(1)
    check_writable(out / "figures")
    text, picture = page(packaged() if model is None else load_model(model, batch=len(HELD_OUT)), results)
    write_all(out / "figures", {"cheaper.svg": picture.encode()})
    write_all(out, {"cheaper.md": text.encode()})


if __name__ == "__main__":
    typer.run(main)
