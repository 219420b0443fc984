"""The page docs/least-variance.md: the rule of EVODiff's default, and what each part of it is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import typer
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.bench.metrics import rmse
from fewstep.grid import Grid, focused, karras, log_snr
from fewstep.models import CIFAR10
from fewstep.schedule import EDM, Node, Schedule
from fewstep.solvers import DEIS, IPNDM, DPMSolverPP, EVODiff, Solver, UniPC
from fewstep.solvers.core.base import Stage, spend
from fewstep.solvers.evodiff.path_prior import PathPrior
from fewstep.solvers.evodiff.trust import Split, TrustingStage
from fewstep.solvers.evodiff.variance import HISTORY, PRIOR, REACH, RESTORED, stages

from .command import Data, Out, say, source, write
from .problems import PROBLEMS, Problem, Source
from .quality.run import SINGLE_IMAGES

__all__ = ["VARIANTS", "Variant", "page", "ratios"]

BUDGETS = (5, 8, 12)
SAMPLES = 128  # where the problem has as many
BEYOND = 1e15  # a surprise that allows any change, whose square float32 holds
NAMES = ("mixture", "ideal", "blurred-0.15", "model", "guided-4", "guided-7.5")


def measured(stage: TrustingStage) -> TrustingStage:
    """As the default does."""
    return stage


def z_is_1(stage: TrustingStage) -> TrustingStage:
    """No change is more than the prior allows."""
    return stage._replace(surprise=BEYOND)


def s_is_0(stage: TrustingStage) -> TrustingStage:
    """Only the newest difference is weighed."""
    return stage._replace(correct=_lead(stage.correct), predict=_lead(stage.predict))


def _lead(split: Split | None) -> Split | None:
    return split and split._replace(rest=())


class Regardless(TrustingStage):
    """s = 1: what was foretold need not have come."""

    def _trust(self, differences: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = super()._trust(differences, noise)
        return z, torch.ones_like(z)


def s_is_1(stage: TrustingStage) -> TrustingStage:
    return Regardless(*stage)


def unbounded(stage: TrustingStage) -> TrustingStage:
    """The last prediction adds what it may by z and s alone."""
    return stage._replace(most=math.inf)


def nothing_measured(stage: TrustingStage) -> TrustingStage:
    return s_is_1(z_is_1(stage))


@dataclass(frozen=True)
class LeastVariance:
    """The rule with another prior, fewer predictions, calls or the end elsewhere, other trust or no correction."""

    prior: PathPrior = PRIOR
    history: int = HISTORY
    reach: float = REACH
    restored: float = RESTORED
    corrected: bool = True
    trust: Callable[[TrustingStage], TrustingStage] = measured
    grid: ClassVar[Grid] = focused
    calls_per_step: ClassVar[int] = 1

    def plan(self, schedule: Schedule, nodes: Sequence[Node], nfe: int | None = None) -> list[Stage]:
        plan = stages(
            nodes,
            False,
            schedule.data_scale,
            prior=self.prior,
            history=self.history,
            reach=self.reach,
            restored=self.restored,
            corrected=self.corrected,
        )
        return spend([self.trust(stage) for stage in plan], nfe, len(nodes) - 1)


class Variant(NamedTuple):
    """The default with one part changed; `grid` None is the solver's own."""

    solver: Solver
    grid: Grid | None = None


VARIANTS: Mapping[str, Variant] = {
    "Gaussian data, no surprise": Variant(LeastVariance(replace(PRIOR, surprise=0.0))),
    "half the surprise": Variant(LeastVariance(replace(PRIOR, surprise=PRIOR.surprise / 2))),
    "twice the surprise": Variant(LeastVariance(replace(PRIOR, surprise=PRIOR.surprise * 2))),
    "surprise in proportion to the step": Variant(LeastVariance(replace(PRIOR, surprise=0.3, growth=1.0))),
    "surprise of twice the length": Variant(LeastVariance(replace(PRIOR, ell=PRIOR.ell * 2))),
    "equal energy at all scales": Variant(LeastVariance(replace(PRIOR, slope=0.0))),
    "scales up to twice as large": Variant(LeastVariance(replace(PRIOR, largest=PRIOR.largest * 2))),
    "three predictions": Variant(LeastVariance(history=3)),
    "two predictions": Variant(LeastVariance(history=2)),
    "calls at the conditional mean": Variant(LeastVariance(reach=0.0)),
    "half the reach": Variant(LeastVariance(reach=REACH / 2)),
    "twice the reach": Variant(LeastVariance(reach=REACH * 2)),
    "the last step to the conditional mean": Variant(LeastVariance(restored=0.0)),
    "the last step to full variance": Variant(LeastVariance(restored=1.0)),
    "z = 1": Variant(LeastVariance(trust=z_is_1)),
    "s = 1": Variant(LeastVariance(trust=s_is_1)),
    "z = s = 1, nothing measured": Variant(LeastVariance(trust=nothing_measured)),
    "s = 0, the newest difference alone": Variant(LeastVariance(trust=s_is_0)),
    "the last prediction not bounded": Variant(LeastVariance(trust=unbounded)),
    "no correction": Variant(LeastVariance(corrected=False)),
    "on a grid of one fall for all": Variant(EVODiff(), focused(fall=0.36)),
    "on a grid half as steep": Variant(EVODiff(), focused(rise=0.3, fall=0.18)),
    "on a grid twice as steep": Variant(EVODiff(), focused(rise=1.2, fall=0.72)),
    "on a grid for single images": Variant(EVODiff(), SINGLE_IMAGES),
    "on even log-SNR": Variant(EVODiff(), log_snr),
    "on Karras' grid": Variant(EVODiff(), karras),
    "published EVODiff on this grid": Variant(EVODiff("published"), focused),
    "published EVODiff on even log-SNR": Variant(EVODiff("published")),
    "DPM-Solver++ 2M on this grid": Variant(DPMSolverPP(order=2), focused),
    "UniPC-2 on this grid": Variant(UniPC(order=2), focused),
    "UniPC-3 on this grid": Variant(UniPC(order=3), focused),
    "DEIS-3 on this grid": Variant(DEIS(order=3), focused),
    "iPNDM-4 on this grid": Variant(IPNDM(order=4), focused),
}


def page(source: Source, say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    rows = {name: [name] for name in VARIANTS}
    for problem in NAMES:
        say(f"{problem} ...")
        for name, ratio in ratios(PROBLEMS[problem].make(problem, source)).items():
            rows[name].append(f"{ratio:.2f}")
    numbers = {"samples": SAMPLES, "calls": ", ".join(map(str, BUDGETS))}
    return RULE + MEASURED.format(**numbers) + table(["changed", *NAMES], list(rows.values())) + TRIED + RELATED


def ratios(problem: Problem) -> dict[str, float]:
    """The RMSE of every variant over that of the default, the geometric mean over the budgets."""
    schedule = EDM()
    seeds = problem.seeds(min(SAMPLES, problem.samples))
    exact = problem.solution(schedule, seeds)

    def error(variant: Variant, nfe: int) -> float:
        images = problem.drawn(schedule, seeds, variant.solver, nfe, variant.grid)
        return rmse(images, exact)

    def mean_log(variant: Variant) -> float:
        return float(torch.tensor([error(variant, nfe) for nfe in BUDGETS]).log().mean())

    default = mean_log(Variant(EVODiff()))
    return {name: math.exp(mean_log(variant) - default) for name, variant in VARIANTS.items()}


RULE = """# The weights of least variance

For people who want the default in formulas, and for whoever would improve it. You get the derivation, what each part
is worth, and what was tried and dropped. [how.md](how.md) has the idea in pictures, without formulas.

What `EVODiff()` does, why, and what each part of it is worth. The equations as coded are in
`solvers/evodiff/variance.py`, the prior in `solvers/evodiff/path_prior.py`, the grid is `fewstep.grid.focused`.

## From entropy to a regression

EVODiff's papers look at a step as a transition of conditional entropy: of all updates that the known predictions allow,
take the one after which least is unknown about the next state. For a Gaussian the entropy of x_t given the predictions
is ½ log Var(x_t | m₀, m₁, …) and a constant, so that least entropy is least conditional variance. The papers then
assume how the variances of single predictions grow with σ, and read a weight for a difference of two of them off the
observed change of the image.

Here the aim is kept and the assumption replaced. The variance of one prediction is the wrong quantity: what decides a
step is how well the predictions *so far* determine the *integral* of those to come, and that is a matter of their
correlation along the path. Given a Gaussian process for the denoised path, the update of least conditional variance
is the conditional mean, and its weights are a regression of the transition on the predictions: Bayesian quadrature of
the sampling ODE. The weights depend on the grid alone; they are made when a run is planned, in a few milliseconds.

With y = x/α, n = σ/α and λ = −log n the ODE is dy/dλ = D − y. The prior takes an image apart into modes, one for each
standard deviation s, whose energies are like those of natural images (energy per unit of log s about s^½), and lets
the denoiser answer

    D = J y + F,    J = s² / (s² + n²),    F = 2 φ s J (1 − J) f(λ)

f is a random function of λ, of variance 1 and Matérn-3/2 correlation over a length of 0.5; φ is 0.26 h^1.5, h the mean
step in λ, as far as it lies within ±5: a flow begins at no signal at all, and its range is longer, not its steps among
the levels that decide.

- **J is the Wiener filter.** Without F this is exact for Gaussian data: predictions change as fast as the data's scales
  are passed, smoothly, and steps can be long. It also says how an error of x comes back with the next prediction, so
  that the regression knows what its own earlier steps did wrong and takes it back where it can.
- **F is the surprise**, what no earlier prediction could tell: at n = s a mode is decided, its entropy falls fastest,
  and a network that knows more of images than their covariance answers more than a Gaussian would. It grows with the
  step: the longer the steps, the more happens between calls. For short steps the prior becomes that of Gaussian data,
  whose paths are analytic, and the order of convergence 3 to 4 ([numerics.md](numerics.md)).

A step then predicts from four predictions, calls the model, and corrects with the new prediction and three old ones,
both by the same regression. The call is made further on than the regression says. A conditional mean has less variance
than what it predicts, and a sharp denoiser, asked at a mean of images, answers with another mean; asked at a state as
varied as the path, it says which. So the differences in the prediction are enlarged until the prior's variance is
restored, by a quarter at most: where steps are that long the prior guesses. The correction is planned knowing where the
call was made, and leaves the least variance from there; for short steps nothing of this remains.

The last prediction is the image, or what is denoised to it in a step to σ = 0. Its mean lacks the details that are
decided within the step, and the fewer the calls the more of them. The least error and the right distribution cannot
both be had: on the line from the mean to the nearest estimate that is distributed as images are, the squared error
grows with the square of the way (Freirich, Michaeli and Meir, 2021), so that half-way costs a quarter. So the last
differences go half the way to where the prior's variance is restored in what is undecided at the start of the step
(each mode counts by 1 − J; one factor serves all; before a step to σ = 0 it is the variance of what is denoised, J x̂).
On VE they would be 1.6 times as large in 5 calls, 1.3 in 6, 1.1 in 8, and unchanged in many.

Levels that are even in time, such as "simple", stop far above the level where the model ends, and their last step goes
from there to σ = 0. What is denoised there is not yet what a run of many steps ends at. On the path answers are about
linear in a power of n: n² where all is decided, as of a Gaussian far wider than n, n at edges. We take the middle,
n^1.5: the last step adds as much of the newest difference as leads to the answer at the level where the schedule ends,
within trust. Where the levels reach that end nothing is added. Such a step ends at a mean: foretold, not enlarged.

## Trust

All this is what the prior expects. Guided networks, sharp data and untrained ones answer otherwise: their answers
change by more, in another direction, or not at all any more, and weights made for changes that go on add what is over.
How much of the plan a sample gets is therefore measured on its own answers while it runs
(`solvers/evodiff/trust.py`). Each row is split in two: the best of the two newest answers, which weighs their
difference d₀, and what the row of all four has beyond it, which counts s times. What a prediction adds to DDIM's counts
z times as well:

    z = min(1, (max(1.5 E, 0.3 (1 − q))² v / |d₀ − P|² + w) / (1 + 16 u max(0, ρ² − 1)))
    u = min(1, 4 |d₀ − P|² / |d₀|²)
    w = max(0, ⟨d₀, P⟩) / (¾ (|P|² + ρ⁴ max(0, |d₀|² − |P|²)))
    s = ⟨d₀, P⟩ / (¾ |P|²),  within [0, 1]

q is n_t / n_s of the step before. P is what d₀ was foretold to be from the differences before it, E the root mean
square that the prior expects of d₀ − P for data of standard deviation 1, v the variance of the data, ρ the noise that
the answer finds in x over that which the first call found, and all |·|² are means over the elements of a sample.

- **z asks whether the newest change may go on.** What is within 1.5 times the prior's surprise, or is less than a third
  of the data's standard deviation, is trusted in full: the prior spreads its changes evenly over the levels, and data
  of one scale have all of theirs at one. A change beyond that comes of guidance or of errors of the network, and counts
  by what of it the prior allows.
- **w is how far it came as foretold**, and that much goes on, whatever its size. From 8 calls on the changes of a
  strongly guided network are ten times what the prior allows, but more than half of each is what those before it
  foretold. With z = 0 the step is DDIM's.
- **A change that outgrows what was foretold** may be of a sample that is just decided, and then it is over: as
  decisions come near, changes grow, and in the end there are none. There w is the projection of P on d₀, not of d₀ on
  P. But larger data than the prior's have growing changes too, and go on. What tells the two apart is the noise:
  answers to such data explain it, and ρ falls.
- **s asks whether the old changes still tell anything.** Under the prior P is a regression, and ⟨d₀, P⟩ is |P|² in the
  mean. In a sample that was decided sooner than foretold it is less, and its old differences, which are large then, are
  not added again. Where d₀ is 0 the step is DDIM's.
- **v is the data's.** The levels, the prior and v are in units of `data_std`; None asks the schedule: 0.5,
  that of images in [-1, 1], if it was not told, and more if its range ends at noise that shows beside that. A model is
  trained down to where noise cannot be seen, so the clean end tells about the data: 0.93 for Stable Diffusion, whose
  latents have about 1. Where the data turn out to be larger the answers show it: Gaussian data
  leave ρ = n / √(s² + n²) of the noise, so that what an answer explains of x tells s, and v is s² if that is more.
  Guidance and errors explain nothing, and allow nothing.
- **Noise that is not there** takes away from z. What an answer leaves of x, and what it misses of the image, are
  orthogonal, so that on the path ρ, the noise that it finds over that of the first call, is at most 1 in the mean.
  Where it finds more, x is off the path, by n √(ρ² − 1) or more: the step was so long that the sample was decided
  within it, the answer is of that decision, and its change does not go on. z is half of itself where x is off by a
  quarter of the noise, and ρ² counts as 2 at most. Answers to Gaussian data, which decide nothing, go towards x, and
  find less than the noise after steps of any length.
- **u keeps that to what was not foretold.** Answers that could not be a mean of images, all too large or turned, find
  more noise than there is in every call, by up to ten times. What came as foretold is of no decision: from where half
  of a change was missed down, ρ counts the less, and short steps keep the order that they have without it.
- **The last prediction is bounded**, as no later call corrects it. DDIM's image of Gaussian data of standard deviation
  s is s (1 − s / √(s² + n²)) off, at most 0.3 n, whatever s is: a mode that is far from decided hardly shows, and one
  that is decided hardly moves. The lead of the last prediction adds as much at most, as a root mean square of the
  sample, or what the prior expects of the prediction, where that is more: on coarse levels it takes back what the calls
  before it left. A larger one goes on with a decision that is over.

In a row the newest difference alone weighs 1 at most, and all beyond that 1 in sum. Where a long step follows a short
one, or the prior's differences hardly differ, it would ask for hundreds. A sample of any denoiser thus stays within 10
times what is answered, on any levels, and on the usual ones nothing is lost.

Both are one number a sample and a call, made of means over its elements: a sample does not depend on its batch, and
nothing waits for a device. For short steps P foretells the change, both are 1, and the order is the plan's.

A correction starts from what was known before the prediction, x less what was added, and takes the prediction back,
trusted or not, with all else that was done to x in place. Its newest difference counts in full, since that is what
holds guided answers together; its old ones count s times, and stay bounded where a long step follows a short one. Over
a first step from pure noise to where much is decided the prior wants more than the newest answer in full: what is
beyond it is foretold, and counts z times.

The bound on the last prediction came last. It was found on data of kinds that nothing here was tuned on: points of
spheres, rings and spirals, bits, categories, spikes, clipped and rescaled guidance, untrained networks. In 406 cells of
such problems the error over the better of DDIM and 2M fell from 0.68 to 0.65 in geometric mean, cells above 1.1 from 17
to 14 %, the worst from 8 to 4.4; of 5 calls on the default's own levels from 0.89 to 0.77. On a sphere in 3 dimensions
5 calls on EDM left 2.2 times DDIM's error, and leave 0.9 of it. Of that kind [stress.md](stress.md) has *decided*
since. On its development problems the error fell from 0.545 to 0.537, on the default's own levels from 0.443 to 0.436,
the worst there from 2.9 to 2.4, and cells above 1.1 from 7 to 5 %. Heavy tails pay, whose last changes are larger: 0.48
in place of 0.41. Tried beside it: 0.3 n alone, 0.65 and 0.43, but Gaussian data lose a tenth of their contrast on
coarse levels of a flow (Karras, 8 calls), and 4 % with both; three quarters of what the prior expects, the same as all
of it; bounds on all that is added in place of the lead, by the scale of the data as ρ tells it, and on all predictions,
no better. To restore a quarter of the variance in place of half, without a bound, took 1 % off the error of these
cells, and made the network's distance to its own distribution a twelfth larger.

w came before. z had trusted what was foretold to a quarter of itself and, beyond that, only by size: under guidance 7.5
it was a tenth where half of each change goes on, and UniPC on the same levels had half of the error at 15 and 20 calls.
With w the packaged network has 0.6 of it there (VP, 15 calls: 0.062 → 0.036), and nothing changes in 5 and 6 calls,
where changes do not go on. On the development problems of [stress.md](stress.md) the error over the better of DDIM and
2M fell from 0.60 to 0.56 in geometric mean, on heavy tails from 0.75 to 0.48, and cells above 1.1 from 9.2 to 6.7 %.
The projection of d₀ on P alone, or the cosine, does as much for the network and the tails, and trusts decisions of
guided mixtures: up to 14 times the error of before.

What is said above of noise that is not there, and of a correction beyond its newest answer, was found on levels that
front ends make of a flow: ComfyUI's Karras in 4 steps are σ = 1, 0.16, 0.014, 0.0003, 0. On these, exponential ones and
those of KL Optimal, with the development problems of [stress.md](stress.md), runs of 4 to 20 calls left 0.66 of
Euler's error in geometric mean without both, more than 1.05 of it in 96 of 483 cells, and up to 14 times as much; with
the first 0.63 and 65, with both 0.57 and 24, and up to 8 times. On the levels of that page the first takes 2 % off the
error, 5 % at 5 and 6 calls, and the second changes nothing. Of the images of [quality.md](quality.md) the first takes
up to a tenth off *ideal* at 4 and 5 calls, 3 % off *blurred-0.15* at 4, and nothing elsewhere.

## What the enlargement is worth

Measured before trust, when only the last step had a limit, on the development problems, VE: in 5 calls the network's
distance to its own distribution is 1.11 in place of 1.43, in 6 0.70 in place of 0.82. As the prior is only a prior, the
error of 5 calls falls too, by 18 to 29 % on *gaussian* and *mixture* (on all schedules) and by 7 % on the network. It
costs error where steps are shorter: up to 14 % of it on those at 8 calls on VP, 1 % on the network, and under 1 % at
guidance 4.

## What passes exactly

The weight of x stays σ_t/σ_s and the weights of predictions keep their sum, those of DDIM: a denoiser that answers the
same everywhere is followed exactly, and all that is uncertain multiplies differences of predictions. But for z and s
the rule is linear, and x may be edited between calls.

## The grid

Nodes are spent where the conditional entropy falls: densest near n = 4, thinning out towards clean images in
proportion to a power of n as the power of natural images does, and faster towards pure noise, where little is decided.
Of all that was tuned the grid is worth most: on a steep one 5 to 8 calls find most of the decisions of sharp problems.
Smooth ones would take half the steepness. The clean side falls faster for few calls than for many (the exponent is
0.22 + 0.09 times their mean length in log-SNR): few are better spent on what is decided, many leave less error there
than in the details. The noisy side falls slower where the range begins near the center, as Stable Diffusion's does at
twice of it: much is decided in the first step there, which is of order 1 and has to be short. Images and latents gain
by that, sharp mixtures, which are decided at the center, lose a little. Peers gain less from this grid: on it none of
those below has less error than the default on any of these problems.
"""
MEASURED = """
## Ablation

RMSE to the converged solution over that of the default, from the same noise: the geometric mean over {calls} calls,
{samples} images (16 on the network), EDM's noise levels, on the development problems of [quality.md](quality.md).
Above 1 the default is better. Written by `make variance`.

"""
TRIED = """
## What was tried and is not in it

Figures are of when it was tried: before trust, with a limit to the last step alone; but for what names the last
prediction, the last step was the mean, and the network is one that was packaged before, trained on all images where
today's is trained on those typical of their class.

- **Weights per sample.** On the paths of the trained network, weights fitted to each sample apart leave only a little
  less variance than weights common to all: images differ in what is decided more than in when. What a measured slope
  could add at run time is less than what its noise costs at 5 to 8 calls. z and s only ever take away.
- **A limit to the last step**, which cut in each sample what the differences add to a multiple of what the prior
  expects of it beside the newest of them. It was in the rule until trust, which does as much at every step.
- **Other gates** in place of z and s, all worse. With e the part of the newest change that was not foretold:
  max(0, 1 − e) and 1 / (1 + e²); e beside what the prior expects of it, as one factor on all differences; the cosine of
  d₀ and P; s up to 2 in place of 1; a slope from the last two answers alone in place of P. And the correction scaled by
  z as well: as it is, it damps what guided answers overshoot by, which is lost with it.
- **A grid for flows that begins to spend nodes at n = 400 or 150**, in place of 1000, where they are trained from:
  at 5 calls the network has 6 and 13 % less error, *mixture* 10 and 17 %; at 15 the network has 40 % more with 150.
  With 400 it is a gain of 2 % over five problems, and every peer on this grid would have it too.
- **Less of the correction, too, where an answer finds more noise than there is**: 3 to 4 % off the error at guidance
  7.5 on the development problems of stress.md, 1 to 3 % more without guidance, and 8 to 16 % more for the median sample
  of the lattices there. And the way x is off beside |d₀|, in place of the noise: networks err by 0.2 % of the noise,
  which at high levels is more than their answers change, and those of galaxies had up to 2.9 times the error.
- **Going further where the newest difference is larger than the prior expects**, in each sample, up to 3 times. It
  takes a tenth off the error of *ideal* and *blurred* where another start goes astray for it, and adds a sixth to that
  of *mixture*; with a threshold that spares *mixture* nothing is left.
- **A window.** Forgetting errors made more than four steps ago, so that every step is planned alone, is several times
  worse on Gaussian data: predictor and corrector must agree on what is still wrong.
- **Weighting the modes by what becomes of their error** at the end of the run, s²/(s² + n²), instead of equally, is
  slightly worse on the network. In the last row alone, by what is undecided before it, (1 − J)^p, it takes 6 % (p =
  0.3) to 17 % (0.7) off the error of 6 calls on the network, and a tenth off the distance of 5 calls to its own
  distribution. But it adds 10 % (p = 0.3) to 80 % (0.7) to the error of 5 calls on *mixture*, and 20 to 160 % to their
  distance.
- **Noise in the predictions**, a penalty on the squares of the weights, helps at 5 calls and hurts from 8 on; surprise
  that grows with the step does the same for less.
- **A grid that minimises the prior's own final error**, node by node, is better on Gaussian data and worse on the
  network, whose answers at high noise are not those of the prior: it trusts the first steps too much.
- **Smoother surprise** (Matérn-5/2, squared exponential) changes little at few calls.
- **A last step that keeps all contrast.** The outputs of 5 calls on sharp problems have three quarters of it. What is
  missing was not decided earlier, and enlarging the last differences adds what is not there: without a limit it makes
  distances worse. What helps is to reach further with the calls before it, and to add nothing where a sample has
  decided.
- **A last prediction that goes further still.** The whole way to the variance, within the limit of then: of 6 calls the
  distance to the network's own distribution is 0.57 for 0.65, but on VP the error of *mixture* a third larger. With the
  limit at 1.6 that of 5 calls is 0.90 for 1.14, and with one of 2 and a fall of 0.22 + 0.8 / steps 0.69; then the error
  under guidance 4 grows by a tenth and by a fifth, and the distance of *mixture* on VP by a quarter and by two fifths.
  No more than the reach of calls, a quarter: 1.32.
- **The step to σ = 0 by the regression** on the prior's answer at the end, not by n^1.5. On levels even in time its
  error is 0.77 to 0.96 of that by n^1.5, on an exact mixture of latents and on the network. On Gaussians of one width,
  which have no details at that level, errors in 64 steps are small, and foretelling enlarges them: of a flow with shift
  3 up to 9 times by the regression, 5 by n^1.5, 2.5 by n², which leaves out a quarter of the gain elsewhere.
- **That step towards σ = 0** itself, where the schedule ends at 0.03: nearer to the solution there, but a run of many
  steps then ends where no other solver's does, and converges at order 1.
- **A gentler fall for few calls**, 0.22 + 0.8 / steps: at 5 calls a tenth less of that distance and of the error of
  *mixture*, 5 % more error on the network, an eighth more distance on *ideal*; at 6 and 8 calls a tenth to a fifth more
  error at guidance 7.5. Gentler still goes on like that: 5 calls with a fall of 0.2 have a distance of 0.86, and twice
  the error.
- **Another reach.** With 2 in place of 1.25 times at most the error of 5 to 8 calls on *ideal* falls by a tenth, while
  5 and 6 calls on smooth problems and under guidance are up to twice as wrong; from 10 calls on the bound hardly
  matters. The Fréchet distance of 5 and 6 calls on *ideal* is 0.79 to 1.16 of the default's with it, that of *mixture*
  1.7 to 1.9; without any reach 1.09 to 1.18 and 0.86 to 0.92. Half of what is missing gains half as much. One factor
  for all steps, in proportion to their mean, takes a twentieth off the error on sharp problems and costs the others as
  much.
  The variance of what the denoiser makes of the state, J x^, in place of the state's own, is hardly missing: from 10
  calls on nothing would be reached.
- **A grid that begins at n = 80** on VP and the flow too, whose noise goes further, so that the first step is the
  longer. On the flow it takes 8 to 14 % off the error of 5 calls, but for *gaussian*, where it adds half, and adds 20
  to 80 % at 10 and 12 calls on the network: the mean of images is still uncertain at n = 80.
- **A steeper fall at 5 calls**, 0.48 for 0.42: a quarter less distance on *ideal*, as at no other number of calls, 6 %
  more error on the network, and a quarter more on *mixture*. A gentler one, 0.36, is the reverse.
- **Another rise.** One of 0.5 in place of 0.6 takes a fifth to a third off the error of 5 to 8 calls on *gaussian*, VE,
  and adds 4 to 14 % to that of the network, on the flow 6 to 31 %. One of 0.7 takes 8 to 15 % off there, and adds a
  third to 96 % to *gaussian*.
- **More that depends on the number of calls.** The grid's fall and the surprise do. A center at noisier levels, or a
  gentler rise, halves the error of 5 calls on Gaussian data; on images of the network it is no better, and those of the
  ideal denoiser are worse. Surprise that goes with the square of the step is better on sharp problems and worse on
  smooth ones; so is a correlation length that shrinks with it, and one that grows is the reverse.
- **A grid for single images**, narrow around n = 3, wins most cells of *ideal*, on VP as on VE, and makes 15 and 20
  calls on *mixture* 2 to 10 times worse. A floor under its density, so that no level goes without, makes up for a part
  of that and loses as much of what it gained: nothing between the two was better than the grid above on both.
- **More predictions.** Six in place of four leave a sixth to a quarter less error on *gaussian* and *mixture*, a
  twentieth more on *local*, and nothing on the network. They would cost two more tensors of the image's size.

[quality.md](quality.md) shows every cell, losses included.
"""

RELATED = """
## What is whose

The parts have been seen elsewhere, some of them long ago; what is new here is how they are put together, and that
nothing is learnt and no model is asked.

- **An ODE solved as inference.** Schober, Särkkä and Hennig (2019) take the solution for a Gauss-Markov process, and
  get multistep methods as its Kalman filter. So is a step here: a regression under a Gaussian process. Theirs is an
  integrated Wiener process, which knows nothing of the problem; the prior here is that of images under noise, and its
  weights are of all predictions at once. What is measured on a sample's own answers is of the same family as their
  calibration of the process's scale, but cut per difference.
- **The Wiener filter as the linear part.** Wang and Vastola (2024) replace the first steps by the exact solution for a
  Gaussian with the data's mean and covariance ("teleportation"); DPM-Solver-v3 (2023) estimates a linear part from a
  model's Jacobian; azula's REAB takes that of unit variance (here `REAB`, for any); A-FloPS (2025) fits a drift to the
  velocities of a run so that what is left varies least. J is such a linear part, one for each scale of an image, of
  spectra as natural images have them, without data or model. A-FloPS' fit is the one idea of these that is not here:
  more than its abstract was not at hand, and what a sample's own answers say enters by trust instead.
- **Calls further on.** F-DPM-Solver (2026; here `FDPMSolver`) calls one step ahead of where the answer is used;
  DyWeight (2026) learns weights whose sum is free, and makes the next call where they lead. The enlargement above does
  that with a factor that the prior's variance gives.
- **Steps where entropy falls.** Entropic time (Stancevic, Handke and Ambrogioni, 2025; here `fewstep.grid.entropic`,
  measured on a model) makes equal shares of the conditional entropy. `focused` has a power of such a rate, of no model.
- **Coefficients or steps that are learnt** from converged runs of the model, by LD3, BNS, S4S, GAS and DyWeight: in
  print far better at 3 to 6 calls than any solver that is not, and of one model and one number of calls each.
- **The last step's half way** towards more variance is the straight line between the least error and the right
  distribution of Freirich, Michaeli and Meir (2021).
- **The aim**, least conditional variance of a transition, is the EVODiff papers'.
"""


def main(data: Data = CIFAR10, out: Out = None) -> None:
    """Measure what each part of EVODiff's default is worth, on the development problems."""
    write(out, lambda: page(source(data, "dev"), say))


if __name__ == "__main__":
    typer.run(main)
