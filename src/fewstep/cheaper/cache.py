"""A denoiser whose network recomputes its outer layers alone in some calls, and foretells what the others would say.

A `CachePlan` has for each call of a run None, a whole call, or weights w, which add up to 1: the skipped features
are then foretold as sum_j w_j F_j from the last whole calls, newest first. Nothing is decided while it runs.

State belongs to a run, and within it to a branch and a place of the plan. A run begins with the call at the plan's
first time and goes on in its order; any other order, and a network that is called more or fewer times or with other
shapes than in the last whole call, is refused. The evaluations within one call of the denoiser, with and without the
condition, or parts of a batch, are its branches: each has features of its own. An exception drops everything. Between
calls the network is as it was: nothing stays hooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..prediction import Denoiser, agreed
from ..schedule import Schedule
from .cuts import cut
from .network import hooked, network_of

__all__ = ["CacheError", "Cached", "Weights"]

Weights = tuple[float, ...]


class CacheError(RuntimeError):
    """A call that the plan does not foresee."""


@dataclass
class Branch:
    """One evaluation of the network within each call: what it was given, and the features of the last whole calls."""

    given: tuple[Any, ...]
    features: list[list[Tensor]] = field(default_factory=list)  # newest first
    answers: dict[nn.Module, Any] = field(default_factory=dict)  # of skipped modules, in shape alone
    stream: list[Tensor] = field(default_factory=list)  # what the blocks are given in this call


class Cached:
    """`denoiser` with `network`, the module that it calls, cut at `depth` in the calls that have `weights`.

    `times` are those of the calls of a run, in order. One run at a time. ValueError for a network that cannot be cut,
    and for weights that ask for more whole calls than there are before; CacheError for calls out of order.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        network: nn.Module,
        *,
        times: Sequence[float],
        weights: Sequence[Weights | None],
        depth: int,
    ):
        self.denoiser, self.network = denoiser, network_of(network)
        self.times, self.weights, self.cut = tuple(times), tuple(weights), cut(self.network, depth)
        if len(self.times) != len(self.weights) or not self.times:
            raise ValueError(f"times and weights must be one a call; got {len(self.times)} and {len(self.weights)}")
        if self.times[0] in self.times[1:]:
            raise ValueError(
                f"times must not come back to the first, {self.times[0]:g}, by which a new run is known: plan with a "
                "solver that calls the model there once"
            )
        whole = 0
        for k, each in enumerate(self.weights):
            if each is not None and not 0 < len(each) <= whole:
                raise ValueError(f"call {k} cannot be foretold from {len(each)} whole calls: there are {whole} before")
            whole += each is None
        self.keep = max((len(each) for each in self.weights if each is not None), default=0)
        self.reset()

    @property
    def schedule(self) -> Schedule | None:
        return agreed((self.denoiser,))

    def reset(self) -> None:
        """Forget the run."""
        self._next = 0
        self._branches: list[Branch] = []

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            raise TypeError("a plan has one time a call; of a stream, with times (B,), nothing can be reused")
        if t == self.times[0]:
            self.reset()
        if self._next == len(self.times) or t != self.times[self._next]:
            due = "is over" if self._next == len(self.times) else f"has time {self.times[self._next]!r} next"
            self.reset()
            raise CacheError(f"the plan {due}; got time {t!r}: plan with the solver, grid and schedule of this run")
        weights = self.weights[self._next]
        try:
            with self._changed(weights) as count:
                answer = self.denoiser(x, t)
            if count() == 0:
                raise CacheError("the denoiser did not call the network: give the module that it calls")
            if count() != len(self._branches):
                raise CacheError(f"the network was called {count()} times, before {len(self._branches)}")
        except BaseException:
            self.reset()
            raise
        self._next += 1
        return answer

    @contextmanager
    def _changed(self, weights: Weights | None) -> Iterator[Callable[[], int]]:
        """The network as this call needs it; how often it was called."""
        places: list[Branch] = []
        first, last = self.cut.skipped[0], self.cut.skipped[-1]

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = _shapes((args, kwargs))
            place = len(places)
            if place == len(self._branches) and (weights is None and self._next == 0):
                self._branches.append(Branch(given))
            if place == len(self._branches) or self._branches[place].given != given:
                raise CacheError(
                    "the network was called more often, or with other shapes, than at the run's first call"
                )
            places.append(self._branches[place])

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            places[-1].stream = self.cut.stream(args, kwargs)

        def record(module: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
            branch = places[-1]
            branch.answers[module] = tree_map(_shadow, answer)
            if module is last:
                found = [each.clone() for each in _tensors(answer)]
                if self.cut.added:
                    found = [each - start for each, start in zip(found, branch.stream, strict=True)]
                branch.features = [found, *branch.features][: self.keep]

        def skip(module: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                answer = places[-1].answers[module]
                return _like(answer, self._foretold(places[-1], weights or ())) if module is last else answer

            return forward

        handles = [self.network.register_forward_pre_hook(enter, with_kwargs=True)]
        if self.cut.added:
            handles.append(first.register_forward_pre_hook(begin, with_kwargs=True))
        if weights is None and self.keep:
            handles += [module.register_forward_hook(record) for module in self.cut.skipped]
        stubs = {} if weights is None else {module: skip(module) for module in self.cut.skipped}
        with hooked(handles), _forwards(stubs):
            yield lambda: len(places)

    def _foretold(self, branch: Branch, weights: Weights) -> list[Tensor]:
        found = []
        for parts in zip(*branch.features, strict=True):
            total = parts[0] * weights[0]
            for weight, part in zip(weights[1:], parts[1:], strict=False):
                total = total.add_(part, alpha=weight)
            found.append(total)
        return [each + start for each, start in zip(found, branch.stream, strict=True)] if self.cut.added else found


def _shadow(each: Any) -> Any:
    """A tensor of the same shape without memory of its own, for what nobody reads."""
    return (
        torch.zeros((), dtype=each.dtype, device=each.device).expand(each.shape) if isinstance(each, Tensor) else each
    )


def _tensors(answer: Any) -> list[Tensor]:
    return [each for each in (answer if isinstance(answer, tuple) else (answer,)) if isinstance(each, Tensor)]


def _like(shadow: Any, tensors: list[Tensor]) -> Any:
    """`tensors` in the places of those of `shadow`."""
    found = iter(tensors)
    if isinstance(shadow, tuple):
        return tuple(next(found) if isinstance(each, Tensor) else each for each in shadow)
    return next(found)


def _shapes(given: Any) -> Any:
    """Without types: diffusers hands over the time as an integer where it is one."""
    return str(tree_map(lambda each: tuple(each.shape) if isinstance(each, Tensor) else type(each), given))


@contextmanager
def _forwards(stubs: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules with another forward, for a while; one that others had put there comes back."""
    before = {module: module.__dict__.get("forward") for module in stubs}
    try:
        for module, stub in stubs.items():
            module.forward = stub
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
