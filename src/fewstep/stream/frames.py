"""The stream batch: images in different phases of their runs, which one call of the network serves.

A run waits for answers (`sampling.solve`) and keeps its solver's state; the stream collects the noisy x of all runs
under way, asks the model once, with times of each sample, and hands each its part of the answer. What a run does is
what it does alone: the only thing they share is the call.

Kodaira et al., StreamDiffusion (2023), section 3.1.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..answers import DenoiserError, how_to_convert
from ..arguments import integer, number
from ..grid import GridFunction
from ..guidance import guided
from ..guidance.base import answer
from ..prediction import Denoiser
from ..sampling import check_parts, integers, plan, solve, step_noise, unit_noise
from ..schedule import Schedule
from ..solvers import EVODiff, Solver
from ..solvers.core.planned import planned
from .residual import residual

__all__ = ["Result", "Stream", "stream"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a frame; `number` counts them as they came, from 0.

    done: `image`, like the frame. skipped: `image` is that of the last frame that was not, in a copy. dropped: more
    frames waited than there was room for. failed: `error` says where; a frame that is skipped after one that failed has
    its error.
    """

    number: int
    outcome: Literal["done", "skipped", "dropped", "failed"]
    image: Tensor | None = None
    error: ValueError | None = None


@dataclass(slots=True, eq=False)
class _Run:
    """A frame, in the queue and then in the line."""

    number: int
    frame: Tensor
    seed: int
    skipped: bool | None = None  # None: not asked yet
    waits: Generator[tuple[Tensor, Any], Tensor, None] | None = None  # for an answer; None: to be begun
    x: Tensor = field(init=False)  # (1, *), where the model is called next; the image after the last call
    calls: int = 0  # made
    reference: Tensor | None = None  # of residual guidance
    result: Result | None = None


class Stream:
    """Frames in, images out, with one call of the model for all that are under way.

        line = Stream(denoiser, nfe=8, start=4)
        for frame in camera:
            for result in line.push(frame):
                show(result)

    Args:
        denoiser: as in `sample`, but that it is given times (B,), float64 on the CPU, one a sample; any number of
            samples up to `phases`, and no conditions of each sample. It is an attribute: to change the prompt, set it.
        nfe, solver, schedule, grid: as in `sample`; the plan is made once.
        phases: how many frames are under way at once, up to the calls that each needs, which is the default: then one
            call a frame. With half as many each frame leaves after half as many others came, and takes two calls.
        start: what comes is images, which are given noise of node `start` of the grid and go on from there; None: what
            comes is unit noise.
        seeds: of that noise and of what stochastic solvers draw; one for all frames, so that what does not move stays,
            or one a frame, whatever becomes of it, such as itertools.count().
        scale: of residual guidance, as `guided` has it; 1 is none.
        negative: the unconditional denoiser, asked once a frame, at its first x; None takes the frame itself.
        delta: as in `residual`.
        above: residual guidance acts at noise levels sigma / alpha above this, as `guidance_interval` has them. Down to
            the clean end it pushes away from the negative at every call: docs/stream.md.
        skip: skip(frame, reference) says whether a frame is so like the last one that was taken that its image will do,
            such as `Similar()`.
        waiting: how many frames may wait; one more, and the oldest of them is dropped.

    A result is, bit for bit, that of the frame alone, on CPU, if the denoiser's answer for a sample does not depend on
    the others: with `load_model(batch=8)`, not with batch norm or activations that are quantised together. Frames are
    copied as they come, so that a camera may fill one buffer again and again; each result's image is its own. Cost: the
    frame's calls, and one with `negative`.

    Raises:
        ValueError, TypeError: at once, for wrong arguments, a frame that is not like the first, or one without a seed.
        DenoiserError: an answer that is no tensor like x. NaN and inf are results: they concern their own frame alone.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        nfe: int | None = None,
        solver: Solver | None = None,
        schedule: Schedule | None = None,
        grid: GridFunction | Iterable[float] | None = None,
        phases: int | None = None,
        start: int | None = None,
        seeds: int | Iterable[int] = 0,
        scale: float = 1.0,
        negative: Denoiser | None = None,
        delta: float = 1.0,
        above: float = 0.0,
        skip: Callable[[Tensor, Tensor], bool] | None = None,
        waiting: int = 1,
    ) -> None:
        solver = EVODiff() if solver is None else solver
        self.denoiser = denoiser
        self._schedule = check_parts(denoiser, solver, schedule)
        nodes, self._stages = plan(self._schedule, solver, nfe=nfe, grid=grid)
        if start is not None:
            first = _integer("start", start)
            if not 0 <= first < len(nodes) - 1:
                raise ValueError(f"start must be one of the grid's nodes 0 to {len(nodes) - 2}; got start={start!r}")
            nodes = nodes[first:]
            self._stages = planned(solver, self._schedule, nodes)
        self._node, self._images = nodes[0], start is not None
        calls = len(self._stages)
        self._phases = calls if phases is None else _integer("phases", phases)
        if not 1 <= self._phases <= calls:
            raise ValueError(f"phases must lie in 1 to {calls}, the calls of a frame; got phases={phases!r}")
        self._stride = -(-calls // self._phases)
        self._waiting = _integer("waiting", waiting)
        if self._waiting < 1:
            raise ValueError(f"waiting must be at least 1; got waiting={waiting!r}")
        scale, delta, above = _finite("scale", scale), _finite("delta", delta), _finite("above", above)
        for name, function in {"negative": negative, "skip": skip}.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function or None; got {name}={function!r}")
        if scale == 1 and (negative is not None or delta != 1 or above):
            raise ValueError(
                "negative, delta and above are parts of residual guidance: give its scale, such as scale=1.5"
            )
        if not 0 <= above < self._stages[0].node.nsr:
            raise ValueError(
                f"above must lie in [0, {self._stages[0].node.nsr:g}), the level of the first call; got above={above!r}"
            )
        if scale != 1 and negative is None and start is None:
            raise ValueError("residual guidance without negative= takes the frame for one, an image: give start=")
        self._guidance = scale, negative, delta
        self._scales = [scale if stage.node.nsr > above else 1.0 for stage in self._stages]
        self._seeds = iter(seeds) if isinstance(seeds, Iterable) else itertools.repeat(_integer("seeds", seeds))
        self._skip = skip
        self._lock = threading.Lock()  # of the next four
        self._came = 0  # frames
        self._kind: tuple[Any, ...] | None = None  # shape, dtype and device of the first frame
        self._queue: deque[_Run] = deque()
        self._told: list[Result] = []  # to be handed out
        self._line: deque[_Run] = deque()  # all that were taken in, in order
        self._taken: Tensor | None = None  # the last frame that was not skipped
        self._last: Result | None = None  # the last one of a run, whose image is handed out in copies

    def push(self, frame: Tensor) -> list[Result]:
        """`put` and `advance`. What the second raises is no reason to push the frame again: it is in."""
        self.put(frame)
        return self.advance()

    def put(self, frame: Tensor) -> None:
        """Let a copy of a frame wait, (*shape): with `start` an image, else unit noise. A camera's thread may do it.

        One that is refused has no number and no result: TypeError if it is no tensor of floating point, ValueError if
        it is not like the first or if no seed is left.
        """
        if not isinstance(frame, Tensor) or not frame.is_floating_point() or not frame.numel():
            found = f"{tuple(frame.shape)}, {frame.dtype}" if isinstance(frame, Tensor) else type(frame).__name__
            raise TypeError(
                f"a frame must be a tensor of floating point, and not empty; got {found}{how_to_convert(frame)}"
            )
        with self._lock:
            kind = tuple(frame.shape), frame.dtype, frame.device
            self._kind = kind if self._kind is None else self._kind
            if kind != self._kind:
                raise ValueError(
                    "all frames must be like the first, {}, {} on {}; got {}, {} on {}".format(*self._kind, *kind)
                )
            run = _Run(self._came, frame.detach().clone(), self._seed())
            if len(self._queue) == self._waiting:
                self._told.append(Result(self._queue.popleft().number, "dropped"))
            self._queue.append(run)
            self._came += 1

    def advance(self) -> list[Result]:
        """Take in a frame, if one waits, make the calls until the next is due, and hand out what is ready, in order.

        Frames that were dropped are told at once. Whatever is raised here, of a model, `skip` or memory, loses neither
        a frame nor a result: call it again, and it goes on. Frames wait while `phases` are under way.
        """
        with self._lock:
            if self._queue and len(self._under_way()) < self._phases:
                self._line.append(self._queue.popleft())
        for run in self._line:
            if run.skipped is None:
                self._ask(run)
        for _ in range(self._stride):
            self._call()
        while self._line and (self._line[0].skipped or self._line[0].result is not None):
            self._told.append(self._leave(self._line[0]))
            self._line.popleft()
        with self._lock:
            results, self._told = self._told, []
        return results

    def flush(self) -> Iterator[Result]:
        """`advance` until nothing waits and nothing is under way."""
        while self._busy():
            yield from self.advance()

    def _busy(self) -> bool:
        return bool(self._queue or self._told or self._line)

    def _under_way(self) -> list[_Run]:
        return [run for run in self._line if not run.skipped and run.result is None]

    def _seed(self) -> int:
        """Of the frame that comes."""
        for seed in self._seeds:
            (found,) = integers([seed])
            return found
        raise ValueError(
            f"seeds must be one a frame; there is none for frame {self._came}: give more, or itertools.count()"
        )

    def _ask(self, run: _Run) -> None:
        """Whether its frame is skipped."""
        like = self._skip is not None and self._taken is not None and self._skip(run.frame, self._taken)
        run.skipped = bool(like)
        if not run.skipped:
            self._taken = run.frame

    def _begin(self, run: _Run) -> None:
        frame = run.frame
        x = frame[None].to(torch.promote_types(frame.dtype, torch.float32))
        if self._images:
            noise = unit_noise([run.seed], frame.shape, dtype=x.dtype, device=x.device)
            x = self._node.alpha * x + self._node.sigma * noise
        else:
            x = x * self._node.sigma
        waits = solve(x, self._node, self._stages, frame.dtype, step_noise([run.seed], x), False)
        run.x, _ = next(waits)
        run.calls = 0
        scale, negative, _ = self._guidance
        if scale != 1:
            run.reference = frame[None]
            if negative is not None:
                with torch.no_grad():
                    time = self._stages[0].node.time
                    run.reference = answer(negative, run.x.clone(), time, "the unconditional denoiser").clone()
        run.waits = waits  # once all of it is there

    def _call(self) -> None:
        """One call for all runs under way."""
        runs = self._under_way()
        if not runs:
            return
        for run in runs:
            if run.waits is None:
                self._begin(run)
        t = torch.tensor([self._stages[run.calls].node.time for run in runs], dtype=torch.float64)
        denoiser, (scale, _, delta) = self.denoiser, self._guidance
        if scale != 1:
            references = torch.cat([run.reference for run in runs if run.reference is not None])
            scales = torch.tensor([self._scales[run.calls] for run in runs], dtype=torch.float64)
            denoiser = guided(denoiser, residual(references, delta, self._schedule), scales)
        with torch.no_grad():
            denoised = answer(denoiser, torch.cat([run.x for run in runs]), t)
        for run, own in zip(runs, denoised.split(1), strict=True):
            self._hand(run, own)

    def _hand(self, run: _Run, own: Tensor) -> None:
        """Its answer to a run."""
        waits, run.waits = run.waits, None  # if the solver throws, its state is lost: the run begins anew
        assert waits is not None
        try:
            run.x, _ = waits.send(own)
        except DenoiserError as error:
            told = error if bool(run.frame.isfinite().all()) else ValueError("the frame itself holds NaN or inf")
            run.result = Result(run.number, "failed", error=told)
            if self._taken is run.frame:  # the next one is tried, whatever it is like
                self._taken = None
        else:
            run.waits, run.calls = waits, run.calls + 1
            if run.calls == len(self._stages):
                run.result = Result(run.number, "done", run.x[0])

    def _leave(self, run: _Run) -> Result:
        """The result of the first in line, with an image of its own."""
        self._last = run.result or self._last
        assert self._last is not None  # a frame is skipped after one that was taken
        outcome = "skipped" if run.skipped and self._last.error is None else self._last.outcome
        image = None if self._last.image is None else self._last.image.clone()
        return replace(self._last, number=run.number, outcome=outcome, image=image)


def _integer(name: str, value: Any) -> int:
    found = integer(value)
    if found is None:
        raise TypeError(f"{name} must be an integer; got {name}={value!r}")
    return found


def _finite(name: str, value: Any) -> float:
    found = number(value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number; got {name}={value!r}")
    return found


def stream(denoiser: Denoiser, frames: Iterable[Tensor], **options: Any) -> Iterator[Result]:
    """The results of all `frames`, in order; `options` are those of `Stream`.

    Frames are taken from their iterator one by one, as there is room for them, so that none is dropped. Whatever is
    raised, a frame that is refused among it, loses no other: ask the same iterator on.
    """
    line, coming, ready = Stream(denoiser, **options), iter(frames), deque[Result]()

    def result() -> Result | None:
        while not ready:
            for frame in itertools.islice(coming, 0 if line._queue else 1):
                line.put(frame)
            if not line._busy():
                return None
            try:
                ready.extend(line.advance())
            except StopIteration as error:  # of a model: it would pass for the end
                raise RuntimeError("a model or skip raised StopIteration, as next() does without a default") from error
        return ready.popleft()

    return iter(result, None)  # a generator would be at its end by what is raised
