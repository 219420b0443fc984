#!/bin/sh
# diffusers 0.42.1: use_flow_sigmas=True beside another grid leaves the flow's formulas on the levels of the betas.
#
# DPMSolverMultistep, DPMSolverSinglestep, DEIS, SASolver and UniPC make their levels by the first option that is set, and
# that of flows comes last, while `step` asks use_flow_sigmas apart. So with Karras', exponential or beta levels a flow
# starts at sigma 157 in place of 1, alpha = 1 - sigma is -156, and the run is NaN. Nothing is warned of. UniPC with
# Karras' levels is the one pair that turns them to a flow's.
#
# Seen on 2026-11-30 (Python 3.11, torch 2.13.0), the exact velocity of Gaussian data of standard deviation 0.5, 20 steps:
#     first sigma, spread of what is drawn    no grid         exponential levels
#     DPMSolverMultistep                      0.999, 0.51     157.4, nan
#     DPMSolverSinglestep                     0.999, 0.49     157.4, nan
#     DEISMultistep                           0.999, 0.48     157.4, nan
#     SASolver                                0.999, 0.50     157.4, nan
#     UniPCMultistep                          1.000, 0.51     157.4, nan
#
# Needs a Python with torch (PYTHON=...). Fails if the release behaves otherwise.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --target "$work" diffusers==0.42.1
PYTHONPATH="$work" "$python" - <<'PY'
import math

import diffusers
import torch

STD = 0.5
NAMES = "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "SASolver", "UniPCMultistep"


def drawn(name, **grid):
    made = getattr(diffusers, f"{name}Scheduler")
    scheduler = made(use_flow_sigmas=True, prediction_type="flow_prediction", **grid)
    scheduler.set_timesteps(20)
    x = torch.randn(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"generator": torch.Generator().manual_seed(1)} if name == "SASolver" else {}
    for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps):
        alpha = 1 - sigma
        denoised = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * x
        x = scheduler.step((x - denoised) / sigma, t, x, return_dict=False, **options)[0]
    return scheduler.sigmas[0].item(), x.std().item()


for name in NAMES:
    plain, gridded = drawn(name), drawn(name, use_exponential_sigmas=True)
    print(f"{name:22}", *(f"{sigma:.3f}, {spread:.2f}" for sigma, spread in (plain, gridded)), sep="   ")
    assert abs(plain[0] - 1) < 0.01 and abs(plain[1] - STD) < 0.1, "a flow without a grid is not as described"
    assert abs(gridded[0] - 157.4) < 0.1 and math.isnan(gridded[1]), "a flow with a grid has other levels now"
for grid in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
    first = []
    for name in NAMES:
        scheduler = getattr(diffusers, f"{name}Scheduler")(use_flow_sigmas=True, **{grid: True})
        scheduler.set_timesteps(10)
        first.append(scheduler.sigmas[0].item())
    print(f"{grid:24}", *(f"{sigma:.3f}" for sigma in first))
    mended = {"UniPCMultistep"} if grid == "use_karras_sigmas" else set()
    assert {name for name, sigma in zip(NAMES, first) if sigma <= 1} == mended, "other pairs have a flow's levels now"
PY
echo "as described"
