"""The page docs/stream.md: what streams gain, what residual guidance leaves, and what patches on two devices cost."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import typer
from torch import Tensor

from fewstep.adapters import load_model
from fewstep.adapters.unet2d import EDMModel
from fewstep.bench.markdown import table
from fewstep.grid import focused
from fewstep.guidance import guided
from fewstep.sampling import integrate, sample, unit_noise
from fewstep.stream import residual, stream

from . import patches
from .command import Out, say, write
from .patches import rmse

__all__ = ["guidance", "horses", "page", "throughput"]

NFE, START = 12, 4  # eight calls a frame: image to image, from sigma = 2.9
FRAMES, ROUNDS, WARM_UP = 16, 3, 1
PHASES = (2, 4, 8)
SCALE, SCALES = 2.0, (1.5, 2.0, 4.0)
HORSE, DEER = 7, 4  # the frames show one, the prompt says the other
ALONE = "one after another"


def horses(model: EDMModel, count: int) -> Tensor:
    """Frames, as a camera would give them: samples of the model."""
    return sample(model.conditioned(HORSE, 2.0), unit_noise(range(count), model.shape), nfe=NFE)


def throughput(model: EDMModel, frames: Tensor, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds a frame, each way once in every round, in turn: a drift of the machine hits all alike."""
    deer, nodes = model.conditioned(DEER), focused(model.schedule, NFE)[START:]
    noise = unit_noise([0], model.shape)

    def alone(frame: Tensor) -> Tensor:
        return integrate(deer, nodes[0].alpha * frame[None] + nodes[0].sigma * noise, nodes)

    streamed = partial(stream, frames=frames, nfe=NFE, start=START)
    whole = guided(deer, model, SCALE)
    ways: Mapping[str, Callable[[], object]] = {
        ALONE: lambda: [alone(frame) for frame in frames],
        **{f"{n} phases": partial(lambda n: list(streamed(deer, phases=n)), n) for n in PHASES},
        "8 phases, guided": lambda: list(streamed(whole)),
        "8 phases, RCFG by the frame": lambda: list(streamed(deer, scale=SCALE)),
        "8 phases, RCFG by one call": lambda: list(streamed(deer, scale=SCALE, negative=model)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + WARM_UP):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / len(frames))
            say(f"{name}: {times[name][-1]:.3f} s a frame")
    return {name: statistics.median(found[WARM_UP:] or found) for name, found in times.items()}


def guidance(model: EDMModel, frames: Tensor, scales: Sequence[float] = SCALES) -> dict[tuple[str, float], float]:
    """RMSE to guidance of two calls, of the ways to do with less, over all frames."""
    deer, nodes = model.conditioned(DEER), focused(model.schedule, NFE)[START:]
    start = nodes[0].alpha * frames + nodes[0].sigma * unit_noise([0], model.shape)
    with torch.no_grad():
        once = model(start, nodes[0].time)
    ways = {"none": None, "by the frame": residual(frames), "by one call": residual(once)}
    found = {}
    for scale in scales:
        exact = integrate(guided(deer, model, scale), start, nodes)
        for name, negative in ways.items():
            denoiser = deer if negative is None else guided(deer, negative, scale)
            found[name, scale] = rmse(integrate(denoiser, start, nodes), exact)
    return found


def page(
    times: Mapping[str, float],
    left: Mapping[tuple[str, float], float],
    late: Mapping[tuple[str, int], tuple[float, float, float]],
) -> str:
    """The figures and what they mean, as Markdown."""
    rows = [
        [name, f"{seconds:.3f}", f"{times[ALONE] / seconds:.2f}", f"{seconds / times['8 phases']:.2f}"]
        for name, seconds in times.items()
    ]
    scales = sorted({scale for _, scale in left})
    ways = dict.fromkeys(name for name, _ in left)
    return TEXT.format(
        frames=FRAMES,
        calls=NFE - START,
        rounds=ROUNDS,
        threads=torch.get_num_threads(),
        machine=platform.machine(),
        images=patches.IMAGES,
        throughput=table(["", "seconds a frame", "frames in the same time", "cost, of 8 phases"], rows),
        guidance=table(
            ["instead of the second call", *(f"scale {scale:g}" for scale in scales)],
            [[name, *(f"{left[name, scale]:.3f}" for scale in scales)] for name in ways],
        ),
        patches=patches.report(late),
    )


TEXT = """# Streams

For people whose images come one after another, from a camera or a video, and who want each soon. You get frames in
different phases of their runs served by one call of the model, and the image that each would have had alone.

```python
from fewstep.stream import Similar, Stream

line = Stream(denoiser, nfe=8, start=4, skip=Similar())
for frame in camera:
    for result in line.push(frame):
        show(result)
```

A result says whether its frame was done, skipped, dropped or failed: the queue is bounded, and NaN in one frame does
not touch the others. `residual` is the negative of residual guidance, which costs no call (StreamDiffusion, 2023).

**When not to use it.** Where all images are there at once, a batch is as fast and simpler. Where a call of one image
uses the whole machine, phases gain nothing.

Written by `python -m benchmarks.stream`: {frames} frames of {calls} calls each, medians of {rounds} rounds in turn,
{threads} threads on {machine}.

{throughput}
## Residual guidance

RMSE to guidance that asks the model twice:

{guidance}
## Several devices

Independent images: data parallel, by `accelerate` and `fewstep bench --shard`. One large image on several devices:
patch parallel of transformers, by xDiT, which takes a diffusers pipeline with `EVODiffScheduler`. PCPP and ASGDiffusion
let patches see each other's features of the call before; simulated here with two halves of {images} images:

{patches}
"""


def main(out: Out = None) -> None:
    """Measure docs/stream.md; ten minutes on two cores."""

    def measured() -> str:
        model: EDMModel = load_model()
        frames = horses(model, FRAMES)
        return page(throughput(model, frames), guidance(model, frames), patches.errors(model))

    write(out, measured)


if __name__ == "__main__":
    typer.run(main)
