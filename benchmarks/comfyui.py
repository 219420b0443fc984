"""The page docs/comfyui.md: how to use fewstep in ComfyUI, and its samplers beside ComfyUI's, run by ComfyUI itself.

COMFYUI_SRC points to a checkout of ComfyUI; the Python that runs this has what it requires, and typer.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import typer
from torch import Tensor

from fewstep.bench.markdown import table
from fewstep.bench.metrics import rmses
from fewstep.integrations.comfy import register
from fewstep.integrations.kdiffusion import sampler
from fewstep.sampling import unit_noise
from fewstep.schedule import Node
from fewstep.solvers import UniPC

from .command import Out, say, write
from .problems.latents import SHAPE, latent_laws

__all__ = ["BUDGETS", "PEERS", "SECTIONS", "page", "rows_of", "summary"]

PEERS = ("euler", "dpmpp_2m", "res_multistep", "uni_pc", "er_sde", "ipndm")
OURS = "evodiff"
THEIRS = ("simple", "normal", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "kl_optimal")
LEVELS = "fewstep"
SECTIONS = (("SD", 1.0), ("SD", 5.0), ("Flux", 1.0), ("Flux", 5.0))
BUDGETS = (4, 5, 6, 8, 10, 12, 15, 20)
# One that lands in another mode decides a cell of few: the largest ratio to Euler's error has a standard error of a
# quarter with 64, of a twentieth with these.
IMAGES = 1024
# In all, by guidance, of what a table shows; a call with guidance costs three times one without.
MORE = {1.0: 8 * IMAGES}
FINE = 400  # levels of the converged solution
NEARLY_ZERO = 1e-3  # sigma / alpha
AIM = {1.0: 0.7, 5.0: 1.0}  # of the best peer's error, by guidance

Pair = tuple[str, str]  # sampler and scheduler
Errors = Mapping[Pair, Sequence[Tensor]]  # RMSE of each image, a tensor a budget


def page(say: Callable[[str], object]) -> str:
    """The page as Markdown. `say` is told what is being measured."""
    _find_comfyui()
    import comfyui_version

    parts = [INTRODUCTION.format(version=comfyui_version.__version__, images=IMAGES, more=MORE[1.0], fine=FINE)]
    for kind, cfg in SECTIONS:
        say(f"{kind}, guidance {cfg:g} ...")
        errors, to_zero = measured(kind, cfg, list(product((OURS, *PEERS), (*THEIRS, LEVELS))), range(IMAGES))
        best = best_of(errors)
        for first in range(IMAGES, MORE.get(cfg, IMAGES), IMAGES):
            more = measured(kind, cfg, shown(best), range(first, first + IMAGES))
            errors, to_zero = (joined(*each) for each in zip((errors, to_zero), more, strict=True))
        parts += [f"### {TITLES[kind]}, guidance {cfg:g}\n"]
        parts += [table(["sampler", "scheduler", *map(str, BUDGETS), "mean"], rows_of(errors, best))]
        parts += [summary(errors, to_zero, best, AIM[cfg])]
    return "\n".join(parts)


def measured(kind: str, cfg: float, pairs: Sequence[Pair], seeds: Sequence[int]) -> tuple[Errors, Errors]:
    """The errors of samplers with schedulers, in KSampler: to what many steps end at, and to sigma = 0."""
    import comfy.sample

    from .comfy_exact import conditioning, patcher

    model, noise = patcher(kind), unit_noise(seeds, SHAPE)
    references = [converged(model, noise, cfg, to_zero) for to_zero in (False, True)]
    conditions = conditioning(1), conditioning(0)

    def errors(name: str, scheduler: str, steps: int) -> list[Tensor]:
        latent = torch.zeros_like(noise)
        out = comfy.sample.sample(
            model, noise, steps, cfg, name, scheduler, *conditions, latent, disable_pbar=True, seed=0
        )
        out = out * model.model.latent_format.scale_factor
        return [rmses(out, exact) for exact in references]

    found = {pair: [errors(*pair, steps) for steps in BUDGETS] for pair in pairs}
    last, zero = ({key: [each[i] for each in of] for key, of in found.items()} for i in range(len(references)))
    return last, zero


def converged(model: Any, noise: Tensor, cfg: float, to_zero: bool) -> Tensor:
    """What many steps end at: denoised at the model's last level or, `to_zero`, far below it."""
    law, flow = model.get_model_object("model_sampling"), model.model.flow
    whole, part, _ = latent_laws()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        node = Node(float(sigma[0]), 1 - float(sigma[0]) if flow else 1.0, float(sigma[0]))
        wanted = part.denoised(x, node)
        if cfg == 1:
            return wanted
        other = whole.denoised(x, node)
        return other + cfg * (wanted - other)

    high = 999.0 if flow else float(law.sigma_max)
    low = float(law.sigma_min)
    low = NEARLY_ZERO if to_zero else low / (1 - low) if flow else low
    ratios = torch.logspace(math.log10(high), math.log10(low), FINE, dtype=torch.float64)
    sigmas = torch.cat([ratios / (1 + ratios) if flow else ratios, torch.zeros(1, dtype=torch.float64)])
    if flow:
        sigmas = torch.cat([torch.ones(1, dtype=torch.float64), sigmas])
    start = noise.double() * (1.0 if flow else math.sqrt(1 + high**2))  # as ComfyUI scales it at sigma_max
    return sampler(UniPC(order=3), flow=flow)(denoiser, start, sigmas, disable=True)


def joined(errors: Errors, more: Errors) -> Errors:
    """With the images of `more` too, where it has them."""
    both = {pair: [torch.cat(each) for each in zip(errors[pair], more[pair], strict=True)] for pair in more}
    return {**errors, **both}


def best_of(errors: Errors) -> dict[str, str]:
    """The best of ComfyUI's schedulers for each sampler."""
    means = {pair: mean([rms(each) for each in of]) for pair, of in errors.items()}
    return {name: min(THEIRS, key=lambda scheduler: means[name, scheduler]) for name in (OURS, *PEERS)}


def shown(best: Mapping[str, str]) -> list[Pair]:
    """Each sampler on "simple", on its best of ComfyUI's schedulers, and on ours."""
    return [(name, scheduler) for name in best for scheduler in dict.fromkeys(("simple", best[name], LEVELS))]


def rows_of(errors: Errors, best: Mapping[str, str]) -> list[list[str]]:
    """What is shown, the least of a budget in bold."""
    rows = shown(best)
    of = {row: [rms(each) for each in errors[row]] for row in rows}
    least = [min(of[row][i] for row in rows) for i in range(len(BUDGETS))]

    def text(error: float, i: int) -> str:
        return f"**{error:.4f}**" if error == least[i] else f"{error:.4f}"

    return [[*row, *(text(error, i) for i, error in enumerate(of[row])), f"{mean(of[row]):.4f}"] for row in rows]


def rms(errors: Tensor) -> float:
    """Of all images."""
    return float(errors.square().mean().sqrt())


def mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def median(errors: Tensor) -> float:
    return float(errors.median())


def peers_of(errors: Errors, best: Mapping[str, str], size: Callable[[Tensor], float]) -> list[Tensor]:
    """The errors of the best peer of each budget on its best scheduler."""
    return [min(each, key=size) for each in zip(*(errors[name, best[name]] for name in PEERS), strict=True)]


def over(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """The ratio of two RMSEs, and its standard error, of the images that both have; of budgets the geometric mean."""
    count = min(map(len, (*ours, *theirs)))
    ours, theirs = ([each[:count] for each in of] for of in (ours, theirs))
    logs, shares = zip(*(_part(*each) for each in zip(ours, theirs, strict=True)), strict=True)
    ratio = math.exp(sum(logs) / len(logs))
    return ratio, ratio * float(torch.stack(shares).mean(0).std()) / math.sqrt(count)


def _part(ours: Tensor, theirs: Tensor) -> tuple[float, Tensor]:
    """The logarithm of a ratio, and how it moves with each image."""
    share = ours.square() / ours.square().mean() - theirs.square() / theirs.square().mean()
    return math.log(rms(ours) / rms(theirs)), share / 2


def summary(errors: Errors, to_zero: Errors, best: Mapping[str, str], aim: float) -> str:
    """Our sampler and levels beside the best peer of each budget on its best scheduler; and beside Euler's."""

    def beside_best(errors: Errors, size: Callable[[Tensor], float] = rms) -> list[tuple[Tensor, Tensor]]:
        return list(zip(errors[OURS, LEVELS], peers_of(errors, best, size), strict=True))

    ratios = [over([ours], [peer]) for ours, peer in beside_best(errors)]
    one = min(PEERS, key=lambda name: mean([rms(each) for each in errors[name, best[name]]]))
    column, deviation = over(errors[OURS, LEVELS], errors[one, best[one]])
    beside = [
        (*over([ours], [euler]), scheduler, steps)
        for scheduler in (*THEIRS, LEVELS)
        for ours, euler, steps in zip(errors[OURS, scheduler], errors["euler", scheduler], BUDGETS, strict=True)
    ]
    worst, error, where, steps = max(beside)
    worse = sum(ratio > 1.05 for ratio, *_ in beside)
    means = [
        f"{mean([size(ours) / size(peer) for ours, peer in beside_best(of, size)]):.2f}"
        for of, size in ((errors, rms), (to_zero, rms), (errors, median))
    ]
    return (
        f"`{OURS}` on `{LEVELS}` over the best of the others, `{one}` on `{best[one]}`, in geometric mean "
        f"**{column:.2f} ± {deviation:.2f}** (the aim was {aim:g}). Over whoever is best with so many calls, on its "
        "best scheduler: "
        + ", ".join(f"{ratio:.2f} ± {error:.2f}" for ratio, error in ratios)
        + f"; geometric mean {means[0]}, of errors to the solution at σ = 0 {means[1]}, of "
        f"median latents {means[2]}. Over `euler` on the same levels it is at most {worst:.2f} ± {error:.2f} "
        f"({where}, {steps} calls), and above 1.05 in {worse} of {len(beside)} cells.\n"
    )


def _find_comfyui() -> None:
    if "COMFYUI_SRC" not in os.environ:
        raise ValueError("COMFYUI_SRC must be set, to a checkout of ComfyUI")
    sys.path.insert(0, os.environ["COMFYUI_SRC"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    register()


TITLES = {"SD": "Stable Diffusion's levels", "Flux": "Flux, shift 1.15"}
INTRODUCTION = """# In ComfyUI

For people who use ComfyUI, Forge or Automatic1111. You get the names in KSampler's dropdowns, what to choose, and how
the samplers compare with ComfyUI's own. Not for distilled models (LCM, Turbo, Lightning), which want their own
sampler.

## Install

- **Clone**: `git clone` this repository into `ComfyUI/custom_nodes`, and restart ComfyUI. It brings its own sources.
  ComfyUI's log then names `custom_nodes/fewstep` among what it loaded, and the dropdowns have the names below.
- **ComfyUI-Manager**: *Install via Git URL*, with this repository's. It is in no registry yet.
- **Link** the folder `comfyui` of a clone anywhere into `custom_nodes`.
- **Copy** the folder `comfyui` there, and install fewstep by `python -m pip install FOLDER_OF_A_CLONE` into **ComfyUI's
  own Python**: in the portable build `python_embeded\\python.exe`, else that of its virtual environment. If it is
  missing, ComfyUI's log says what to type.

It needs Python 3.11 or newer, and what ComfyUI has anyway. Tried in ComfyUI 0.3.64 and 0.8.0, on the CPU, with a model
that is known exactly: not with a large one.

## Use

In **KSampler** and **KSamplerAdvanced**: sampler `evodiff`, scheduler `fewstep`. 8 to 15 steps are enough for most.

| in the dropdown | what it is |
| --- | --- |
| sampler `evodiff` | EVODiff's default. All of these make one model call a step. |
| sampler `evodiff_sde` | the same with noise on the way, eta = 0.3 |
| sampler `unipc_exact`, `dpmpp_2m_exact` | UniPC-2, DPM-Solver++ 2M; on flows in their log-SNR, as ComfyUI's are not |
| scheduler `fewstep` | what suits the model: Karras' on Stable Diffusion's range, `focused` on flows and wide ranges |
| scheduler `fewstep_focused` | EVODiff's own levels on any model |

Both go to 0 where the noise at the model's lowest level would be seen, as on Stable Diffusion's range. On flows and
wide ranges it would not, and they end at that level, which leaves a call more for the rest. In 6 steps of Flux' levels
that is as good or better for 18 of ComfyUI's 20 samplers without noise of their own, `euler` by a sixth, and halves the
error of ours. `gradient_estimation_cfg_pp` has 1.7 times its error, and `dpm_2`, for which ComfyUI drops the last level
but one, five times: give these another scheduler.

As nodes, for SamplerCustom and SamplerCustomAdvanced: *fewstep sampler*, another with all solvers, *fewstep sigmas*,
and *fewstep tuned plan*. Each has tooltips and a help page. *Workflow → Browse Templates → fewstep* has examples: SDXL,
Flux, Wan, image to image, and the two experts of Wan 2.2.

- **Image to image.** `denoise` of *fewstep sigmas* begins where `simple` begins: on Flux, 0.3 is σ = 0.57. KSampler's
  `denoise` cuts the end off a longer list, which with `fewstep` as with `karras` begins at much less noise; there, take
  `evodiff` with `simple`, or the nodes.
- **Two samplers in a row.** A half that goes on where another stopped, with the same sampler and levels, goes on with
  what the solver knows of the run: split and whole are the same to rounding with most solvers. With `evodiff`, whose
  weights go by the length of all steps, they differ by an RMSE of up to 0.4 times its own error: 0.003 in 8 steps and
  0.001 in 10 of a CIFAR-10 network. `unipc_exact` differs by 0.006 if the second half has but the last two of 10 steps,
  whose order the first could not know. The last two halves are remembered; a second half that is run again after its
  first was forgotten differs a little.
- **Noise.** `evodiff` draws none, `evodiff_sde` some; *fewstep sampler* has `eta`. An image draws by the seed, its
  place in the batch and the noise level, whatever the batch: two halves with one seed draw what the whole does.
- **Levels that rise again** (Restart) add noise where they rise. **Levels that rise from the start** (unsampling) need
  a linear solver such as `unipc_exact`: [inversion.md](inversion.md).

## Forge, reForge and Automatic1111

*Extensions → Install from URL* with this repository's, or `git clone` it into `extensions`, and restart: samplers
*EVODiff*, *UniPC exact*, *DPM++ 2M exact* and the schedules *Fewstep* and *Fewstep focused* appear. Whether a model is
a flow is seen from its levels. *Automatic* is *Fewstep* for these samplers.

It needs Python 3.11 or newer, which many of these installations, on 3.10, have not, and a web UI with schedules in a
list of their own: Automatic1111 1.9, or Forge or reForge of July 2024, or newer. On others the log says so.

- **Image to image** and a second pass begin at the noise at which their own samplers begin on the same schedule. With
  *Fewstep*, as with *Karras*, a low strength is less than with *Simple*: 0.3 of 10 steps is σ = 0.45, not 1.16.
- **Nothing is drawn on the way**: eta and the sigma noise of the settings do nothing, an image is that of its seed in
  any batch.
- **Flows.** *Fewstep* ends at the lowest level of the model, as *KL Optimal* does: its noise is not seen. All samplers
  of Forge and Automatic1111 go on from there as they should. But *DPM fast* and *DPM adaptive* in image to image, and
  *Restart* from 20 steps, take the last level but one for the last, on any schedule. Levels above 1, as *Align Your
  Steps* or *Use old karras scheduler sigmas* have them, are refused by our samplers.

Tried in Forge (`dfdcbab`, f2.0.1v1.10.1), Automatic1111 1.10.1 and reForge (`3b56b26`), which were started whole but
for the page, on the CPU with Python 3.11 and torch 2.13, newer than they ask for. The model is known exactly: with
Stable Diffusion's levels in all three, as SD3 in Forge and Automatic1111, as Flux in Forge; reForge has no flows. With
guidance and without, from noise, from an image and in a second pass, they make what fewstep makes of the same noise, to
2e-5; masks, previews and interruption work. **Not tried**: a real checkpoint, the page in a browser, a GPU, half
precision.

## Training repositories

```python
import k_diffusion.sampling

from fewstep.integrations.kdiffusion import sample_evodiff

k_diffusion.sampling.sample_evodiff = sample_evodiff  # for a flow: sampler(EVODiff(), flow=True)
```

## Beside ComfyUI's samplers

In ComfyUI {version}, by its KSampler on the CPU. The model is exact: a mixture of six Gaussians over latents of 4 × 8 ×
8, in two classes, standard deviation 0.62, of which the prompt names one. Figures are RMSE to what
{fine} steps of UniPC-3 make of the same noise with the same guidance, by steps, which are model calls. They end as a
long run in ComfyUI does, with what the model denoises at its last level. Each sampler is on `simple`, on the best of
ComfyUI's schedulers for it over all columns, and on `fewstep`; the last column is the geometric mean, and the least of
a column is in bold. All ran on {images:,} latents; without guidance, those in the table on {more:,}: one that lands in
another mode is most of an RMSE, and of 1,024 none or two may. ± is one standard error, of the draw of latents.
`er_sde` draws noise, so that its images are others: its figures say no more than that. Below each table are also the
mean of errors to the solution at σ = 0, and that of median latents. On Stable Diffusion's levels all end 0.004 from
σ = 0, as the model is not asked below σ = 0.03. `fewstep` on a flow ends at its lowest level, with the noise of that,
σ = 0.0003. Nothing here says what images look like. Written by `make comfyui`.
"""


def main(out: Out = None) -> None:
    """Measure the samplers in ComfyUI's dropdown beside ComfyUI's own."""
    write(out, lambda: page(say))


if __name__ == "__main__":
    typer.run(main)
