"""Noise schedules: x_t = alpha * x_0 + sigma * noise, as float64 numbers.

A schedule owns a clock, the number that the model is told, and answers two questions: what are
alpha and sigma at a time, and at which time is a given half log-SNR reached. Nothing here knows
about tensors.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

__all__ = ["DATA_STD", "EDM", "Discrete", "Flow", "Node", "Schedule", "VPCosine", "VPLinear", "contradicts", "mismatch"]

# The standard deviation of images in [-1, 1], as EDM has it (Karras et al., 2022, Table 1: sigma_data).
DATA_STD = 0.5
# sigma / alpha of two grey levels in images of DATA_STD; it grows with the data. Below it nobody sees whether a run
# ends at t_min or at 0.
VISIBLE = 1 / 64
# sigma / alpha at the noisiest level, below which no run can start from noise. Wrong tables have 0.1, a constant beta
# of 1 over [0, 1] has 1.3, published models have 12 (sbi's) to 4,000.
LEAST_NOISE = 0.5
# sigma / alpha beyond which, or below whose inverse, squares leave float32.
EXTREME = 1e15
SAME = 0.01  # in half log-SNR: tables rounded to float32 differ by 1e-4, VPLinear's betas by 5 % by 0.03


class Node(NamedTuple):
    """A point of a grid: the schedule's clock there, and x = alpha * x_0 + sigma * noise."""

    time: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half log-SNR, log(alpha / sigma): -inf at pure noise, +inf at clean data."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    @property
    def nsr(self) -> float:
        """Noise-to-signal ratio, sigma / alpha: the noise level of x / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf


class Schedule(ABC):
    """What a grid and a solver need to know of a noise schedule.

    `t_max` and `t_min` are the ends of the range that the model was trained on, in the schedule's
    clock; `t_clean` is the time at which sigma is exactly 0. `uniform` names the variable in which
    equal steps suit the models that use the schedule: half log-SNR or the clock. `data_std` is the standard
    deviation of the data, about: what is little noise, and what is much. None leaves it to the range: `data_scale`.
    """

    data_std: float | None = None
    uniform: ClassVar[Literal["lam", "time"]] = "lam"
    t_clean: ClassVar[float] = 0.0

    @property
    @abstractmethod
    def t_max(self) -> float: ...

    @property
    @abstractmethod
    def t_min(self) -> float: ...

    @abstractmethod
    def node(self, time: float) -> Node:
        """alpha and sigma at `time`; ValueError outside the clock."""

    @abstractmethod
    def time_at(self, lam: float) -> float:
        """The time at which the half log-SNR is `lam`."""

    @property
    def lam_range(self) -> tuple[float, float]:
        """Finite half log-SNR at the noisy and at the clean end."""
        return self.node(self.t_max).lam, self.node(self.t_min).lam

    @property
    def data_scale(self) -> float:
        """`data_std` or, where nobody told it, what the range says: models learn noise down to where it is not seen.

        DATA_STD if the clean end is not seen beside it, else of what it is not seen beside: 0.93 on Stable Diffusion's
        range, whose latents have about 1.
        """
        return self.data_std or DATA_STD * max(1.0, math.exp(-self.lam_range[1]) / VISIBLE)

    def ramp(self, u: float) -> float:
        """The time at the fraction `u` of the clock, from t_min at 0 to t_max at 1."""
        return self.t_min + u * (self.t_max - self.t_min)


def mismatch(schedule: Schedule, node: Node) -> float:
    """How far the half log-SNR of `node` is from the schedule's at its time; inf where its clock has no such time.

    Where one of the two is infinite, pure noise or clean data, both are taken within the schedule's `lam_range`.
    """
    try:
        lams = schedule.node(node.time).lam, node.lam
    except ValueError:
        return math.inf
    if not all(map(math.isfinite, lams)):
        low, high = schedule.lam_range
        lams = min(max(lams[0], low), high), min(max(lams[1], low), high)
    return abs(lams[0] - lams[1])


def contradicts(one: Schedule, other: Schedule) -> bool:
    """Whether the same time means two noise levels, over the range of `other`. Ranges and shifts may differ."""
    if one == other:
        return False
    times = [other.t_max, *(other.ramp(i / 8) for i in range(1, 8)), other.t_min]
    return any(mismatch(one, other.node(time)) > SAME for time in times)


def _on_clock(time: float, name: str, low: float, high: float = math.inf) -> float:
    time = float(time)
    if not low <= time <= high or math.isinf(time):
        raise ValueError(f"time must be finite and lie in [{low:g}, {high:g}] for {name}; got {time!r}")
    return time


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = t; the clock is sigma itself.

    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), Table 1;
    the default range is theirs.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    data_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_std(self.data_std)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "EDM needs 0 < sigma_min < sigma_max < inf; "
                f"got sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}"
            )
        if self.sigma_min < 1 / EXTREME or self.sigma_max > EXTREME:
            raise ValueError(
                f"EDM needs sigmas in [{1 / EXTREME:g}, {EXTREME:g}], whose squares float32 holds; "
                f"got sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}: measure the data in other units"
            )

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def node(self, time: float) -> Node:
        time = _on_clock(time, "EDM (the clock is sigma)", 0.0)
        return Node(time, 1.0, time)

    def time_at(self, lam: float) -> float:
        return math.exp(-lam)


@dataclass(frozen=True)
class VPLinear(Schedule):
    """Variance preserving with beta(t) = beta_min + t (beta_max - beta_min), t in (0, 1]; both alike: constant.

    log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, sigma^2 = 1 - alpha^2.
    Song et al., Score-Based Generative Modeling through SDEs (2021), eq. (32)-(33).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    data_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_std(self.data_std)
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                "VPLinear needs 0 < beta_min <= beta_max < inf; "
                f"got beta_min={self.beta_min!r}, beta_max={self.beta_max!r}"
            )
        _check_range(self, 0.0, math.inf)
        _check_noise(
            self.node(max(self.t_max, 1.0)),  # a t_max below 1 may be a part of the range
            f"VPLinear of betas {self.beta_min!r} to {self.beta_max!r}",
            "its betas are those of a table times its number of steps: VPLinear(0.1, 20.0) for 1e-4 to 0.02 in 1,000",
        )

    def node(self, time: float) -> Node:
        time = _on_clock(time, "VPLinear", 0.0)
        node = _preserving(time, -time * (time * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2))
        if node.alpha == 0:
            raise ValueError(
                f"VPLinear has nothing of the data left at time {time!r}: its clock runs from 0 to 1, unless betas are "
                "small; a network that is told 0 ... 999 is on the clock of a table, Discrete(alphas_cumprod)"
            )
        return node

    def time_at(self, lam: float) -> float:
        # alpha^2 = sigmoid(2 lam), so minus_log_var = -2 log alpha; then the stable root of the quadratic.
        minus_log_var = _softplus(-2 * lam)
        slope = self.beta_max - self.beta_min
        return 2 * minus_log_var / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * minus_log_var))


@dataclass(frozen=True)
class VPCosine(Schedule):
    """Variance preserving with alpha = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)).

    Nichol & Dhariwal, Improved DDPM (2021), eq. (17), s = 0.008. Its log-SNR diverges at t = 1, before
    which t_max = 0.9946 stops, the value of the DPM-Solver code.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    data_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_std(self.data_std)
        if not 0 < self.s < math.inf:
            raise ValueError(f"VPCosine needs 0 < s < inf; got s={self.s!r}")
        _check_range(self, 0.0, 1.0)

    # With c = pi/2 / (1 + s), the angles are pi/2 - c (1 - t) and c s. Sines of c (1 - t) and c t keep every digit at
    # both ends, where cos(pi/2 - small) loses alpha, and 1 - alpha^2 and acos(alpha) lose sigma and the time.
    @property
    def _c(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def node(self, time: float) -> Node:
        time, c = _on_clock(time, "VPCosine", 0.0, 1.0), self._c
        sigma = math.sqrt(math.sin(c * time) * math.sin(c * (time + 2 * self.s))) / math.sin(c)
        return Node(time, math.sin(c * (1 - time)) / math.sin(c), sigma)

    def time_at(self, lam: float) -> float:
        # 1 - alpha = 1 - cos(c t) + sin(c t) tan(c s), a quadratic in tan(c t / 2); then its stable root.
        missing, slope = -math.expm1(-_softplus(-2 * lam) / 2), math.tan(self._c * self.s)
        half = math.atan(missing / (slope + math.sqrt(slope**2 + missing * (2 - missing))))
        return min(2 * half / self._c, 1.0)


# diffusers sets the last alpha-bar of a zero-terminal-SNR table to this, so that log-SNR stays finite.
ZERO_SNR_FLOOR = 2.0**-24


@dataclass(frozen=True)
class Discrete(Schedule):
    """A table of alphas_cumprod, as in DDPM, Stable Diffusion and every discrete-time model.

    The clock is the table's index, 0 ... n - 1, the integer that the network was trained with;
    between entries log alpha = log(alphas_cumprod) / 2 is linear in it, and index -1 is clean data
    (alphas_cumprod = 1). The interpolation is that of the DPM-Solver code. An entry of exactly 0
    (zero terminal SNR) is read as 2^-24, or as a quarter of the entry before it where that is less.
    """

    alphas_cumprod: Sequence[float] = field(repr=False)
    data_std: float | None = field(default=None, kw_only=True)
    uniform: ClassVar[Literal["lam", "time"]] = "time"
    t_clean: ClassVar[float] = -1.0

    def __post_init__(self) -> None:
        _check_std(self.data_std)
        table = tuple(float(a) for a in self.alphas_cumprod)
        if len(table) < 2:
            raise ValueError(f"alphas_cumprod needs at least 2 entries; got {len(table)}")
        floored = (*table[:-1], table[-1] or min(ZERO_SNR_FLOOR, table[-2] / 4))
        for i, (above, below) in enumerate(zip((1.0, *floored), floored, strict=False)):
            if not 0 < below < above:
                raise ValueError(
                    "alphas_cumprod must fall strictly from below 1 to above 0; "
                    f"got {above!r} then {below!r} at index {i}: pass the cumulative products, noisiest last"
                )
        _check_noise(_preserving(len(table) - 1, math.log(floored[-1]) / 2), "alphas_cumprod", _products(floored))
        object.__setattr__(self, "alphas_cumprod", floored)
        log_alpha = (0.0, *(math.log(a) / 2 for a in floored))  # entry k is index k - 1
        object.__setattr__(self, "_log_alpha", log_alpha)

    _log_alpha: tuple[float, ...] = field(init=False, repr=False, compare=False)

    @property
    def t_max(self) -> float:
        return len(self.alphas_cumprod) - 1.0

    @property
    def t_min(self) -> float:
        return 0.0

    def node(self, time: float) -> Node:
        time = _on_clock(time, "Discrete (the clock is the table's index)", -1.0, self.t_max)
        below = min(int(time + 1), len(self._log_alpha) - 2)
        a, b = self._log_alpha[below : below + 2]
        return _preserving(time, a + (time + 1 - below) * (b - a))

    def time_at(self, lam: float) -> float:
        log_alpha = -_softplus(-2 * lam) / 2
        table = self._log_alpha
        below = min(max(bisect.bisect_left(table, -log_alpha, key=lambda a: -a) - 1, 0), len(table) - 2)
        a, b = table[below : below + 2]
        time = below - 1 + (log_alpha - a) / (b - a)
        # Rounding must not put the table's last entry off the clock; a lam beyond it stays off.
        return min(time, self.t_max) if lam >= self.lam_range[0] else time


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t. The clock, in [0, 1], is sigma, as the model is told it.

    `shift` moves the times of a time-uniform grid: sigma = shift u / (1 + (shift - 1) u).
    Esser et al., Scaling Rectified Flow Transformers (2024), eq. (23).
    """

    shift: float = 1.0
    data_std: float | None = field(default=None, kw_only=True)
    uniform: ClassVar[Literal["lam", "time"]] = "time"
    # Grids in log-SNR need finite ends; beyond 1 : 999 a flow model sees nothing but noise, or no noise.
    LAM_END: ClassVar[float] = math.log(999.0)

    def __post_init__(self) -> None:
        _check_std(self.data_std)
        if not 0 < self.shift < math.inf:
            raise ValueError(f"Flow needs shift > 0; got shift={self.shift!r}")

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def lam_range(self) -> tuple[float, float]:
        return -self.LAM_END, self.LAM_END

    def node(self, time: float) -> Node:
        time = _on_clock(time, "Flow", 0.0, 1.0)
        return Node(time, 1.0 - time, time)

    def time_at(self, lam: float) -> float:
        return math.exp(-_softplus(lam))

    def ramp(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)


def _check_noise(end: Node, name: str, meant: str) -> None:
    if end.nsr < LEAST_NOISE:
        raise ValueError(
            f"{name} must end in noise; at its end, time {end.time:g}, sigma / alpha is {end.nsr:.2g} "
            f"(of models, 12 to 4,000): {meant}"
        )


def _products(alphas: Sequence[float]) -> str:
    """What was probably meant by a table that ends in data."""
    if math.prod(alphas) < 1 / (1 + LEAST_NOISE**2):
        return "these look like alphas, 1 - beta: pass their cumulative products, a scheduler's alphas_cumprod"
    return "pass the cumulative products of 1 - beta over all steps, a scheduler's alphas_cumprod"


def _check_std(data_std: float | None) -> None:
    if data_std is not None and not 0 < data_std < math.inf:
        raise ValueError(
            f"data_std must be None or positive and finite, the standard deviation of the data; got {data_std!r}"
        )


def _check_range(schedule: Schedule, low: float, high: float) -> None:
    if not low < schedule.t_min < schedule.t_max < high:
        raise ValueError(
            f"{type(schedule).__name__} needs {low:g} < t_min < t_max < {high:g}; "
            f"got t_min={schedule.t_min!r}, t_max={schedule.t_max!r}"
        )


def _preserving(time: float, log_alpha: float) -> Node:
    """alpha^2 + sigma^2 = 1, without the cancellation of 1 - alpha^2 near clean data."""
    return Node(time, math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha)))


def _softplus(z: float) -> float:
    """log(1 + e^z) without overflow."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))
