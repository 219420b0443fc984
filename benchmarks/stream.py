"""The page docs/stream.md: what streams gain, what residual guidance leaves, and what patches on two devices cost."""

from __future__ import annotations

import math
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
from fewstep.guidance import guidance_interval, guided
from fewstep.prediction import Denoiser
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
ABOVE = 1.0  # sigma, of `above=`
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
    known = {"by the frame": residual(frames), "by one call": residual(once)}
    found: dict[tuple[str, float], float] = {}
    for scale in scales:
        ways: dict[str, Denoiser] = {"none": deer}
        for name, negative in known.items():
            ways[name] = guided(deer, negative, scale)
            ways[f"{name}, above {ABOVE:g}"] = guidance_interval(ways[name], deer, ABOVE, math.inf)
        exact = integrate(guided(deer, model, scale), start, nodes)
        found |= {(name, scale): rmse(integrate(denoiser, start, nodes), exact) for name, denoiser in ways.items()}
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

For people whose images come one after another, from a camera or a video, and who want each soon. You get one
call of the model for several frames, each at another step of its run, and for each frame the image that it would have
had alone.

```python
from fewstep.stream import Similar, Stream

line = Stream(denoiser, nfe=8, start=4, skip=Similar())
for frame in camera:
    for result in line.push(frame):
        show(result)
```

A result says whether its frame was done, skipped, dropped or failed: the queue is bounded, and NaN in one frame does
not touch the others. A frame is copied as it comes, so a camera may fill one buffer again and again. After an
exception, `advance` goes on with all frames that came. On CPU an image is that of its frame alone, to the bit, if the
model's answer for a sample does not depend on the others: `load_model(batch=8)` sees to that. Times are one a sample;
no model that `load_model` reads takes one a token, as some transformers of videos do.

**When not to use it.** Where all images are there at once, a batch is as fast and simpler. Where a call for one image
uses the whole machine, phases gain nothing.

Written by `python -m benchmarks.stream`: {frames} frames of {calls} calls each, medians of {rounds} rounds in turn,
{threads} threads on {machine}.

{throughput}
## Residual guidance

`Stream(..., scale=1.5)` guides with what is known instead of a second call: the frame itself, or with `negative=` the
unconditional answer to the frame's first x, which is one call a frame (RCFG; StreamDiffusion, 2023, section 3.2). RMSE
to guidance that asks the model twice:

{guidance}
The first row has no guidance at all. What is known stands still while x nears the image, so that each call pushes on in
the same direction; by the clean end the image is lost. `above=1.0` guides at noise
levels above 1 alone: with one call of the negative that is nearer to whole guidance than none is, at every scale here.

**When not to use it.** Without `above`, unless the run ends in noise. Guided by the frame, a run is steered away from
the frame, which is not what guidance does. Where two calls fit, make two.

## Several devices

| you have | use | the images |
| --- | --- | --- |
| many images | one process a device, by `accelerate` or `--shard`: [Bench](bench.md) | the same |
| one large image, a transformer of diffusers | its sequence on all devices, below | the same, to rounding |
| such a model on devices that xDiT knows | xDiT, Ulysses or ring degree | the same, to rounding |
| a U-Net, and one image on several devices | one device, fewer calls | see below |

**diffusers** divides the sequence of tokens, and gathers the answer before the scheduler sees it, so that the scheduler
need not know. Under `torchrun --nproc-per-node 2`, for Flux, Qwen-Image, Wan, LTX and others:

```python
import torch.distributed
from diffusers import ContextParallelConfig
from fewstep.integrations.diffusers import EVODiffScheduler

torch.distributed.init_process_group()
pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
```

The tests run this in two processes on a CPU with a tiny Flux: the latents are those of one process, to rounding. Give
all processes the same seed.

**xDiT** (`pip install xfuser`) has more models, and divides guidance too:

```python
from xfuser.runner import xFuserModelRunner

runner = xFuserModelRunner({{"model": "FLUX.1-dev", "ulysses_degree": 2}})
options = runner.preprocess_args({{"prompt": "a cat", "num_inference_steps": 8}})
runner.initialize(options)
pipe = runner.model.pipe
pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
output, timings = runner.run(options)
```

Read in the code of xfuser 0.7.0, not run: without an accelerator `import xfuser` ends in NotImplementedError, "No
Accelerators ... available", once triton is there, which it needs and does not name. The runner's transformers gather
their answers, so that the scheduler sees whole latents. Not so in xDiT's own pipelines (`xFuserFluxPipeline`), which
PipeFusion needs: there each device steps its own part, whose weights EVODiff would find for that part alone, and a
scheduler that xDiT does not wrap is asked for every patch in turn.

**PCPP** and DistriFusion, of which it is a variant, give each device a part of the image, and let it see the other
parts' features as they were one call ago. Neither is built here; this is what stale features cost, of two halves of
{images} images:

{patches}
Few calls are where neighbouring calls differ most. With EVODiff one device in 8 calls is better than two in 20; DDIM
loses less, as it had less to lose, and stays behind EVODiff on the same devices. DistriFusion's gains are of 50 calls.
PCPP sends only what borders on a patch, which cannot be less stale.

**ASGDiffusion** makes images larger than those a model was trained on, from patches that follow a smaller image's
structure, each on its device. That is another image than the model's own: there is no solution to hold it against,
and nothing of it is here.

**When not to use several devices.** For many images at once one process a device wins: nothing is sent.
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
