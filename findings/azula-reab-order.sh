#!/bin/sh
# azula 0.11.1: REABSampler converges at first order, whatever its `order`.
#
# Its documentation has sqrt(1 + e^(2s)), both terms of the step's end, before the integral; its code has
# torch.sqrt(alpha_s**2 + sigma_t**2) there: alpha of the end, sigma of the start. On a Gaussian, whose sampling ODE is
# solved in closed form, order 3 halves its error with twice the steps. With the formula as documented it is of order 3.
#
# Seen on 2026-11-28 (Python 3.11, torch 2.13.0), relative error at 20, 40, 80, 160 steps:
#     as released     1.6e-01 7.5e-02 3.6e-02 1.8e-02   order 1.06
#     as documented   7.1e-03 5.7e-04 3.8e-05 2.2e-06   order 3.88
#
# Needs a Python with torch (PYTHON=...). Fails if the release behaves otherwise.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work" azula==0.11.1 einops==0.8.1
PYTHONPATH="$work" "$python" - <<'PY'
import inspect
import math
import textwrap

import azula.sample
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.sample import REABSampler

STD = 0.5
START, END = 80.0, 0.002


class Gaussian(Denoiser):
    """The exact denoiser of N(0, STD^2), and sigma falling evenly in its logarithm."""

    def __init__(self):
        super().__init__()
        self.schedule = lambda t: (torch.ones_like(t), END * (START / END) ** t)

    def forward(self, x_t, t, **kwargs):
        _, sigma = self.schedule(t)
        return DiracPosterior(mean=x_t * STD**2 / (STD**2 + sigma**2))


def order(sampler):
    x = torch.ones(1, 1, dtype=torch.float64) * START
    exact = START * math.sqrt((STD**2 + END**2) / (STD**2 + START**2))
    errors = []
    for steps in (20, 40, 80, 160):
        got = sampler(Gaussian(), order=3, steps=steps, start=1.0, stop=0.0, silent=True, dtype=torch.float64)(x)
        errors.append(abs(float(got) / exact - 1))
    slope = math.log(errors[0] / errors[-1]) / math.log(8)
    print(" ".join(f"{e:.1e}" for e in errors), f"  order {slope:.2f}")
    return slope


source = textwrap.dedent(inspect.getsource(REABSampler))
slip = "torch.sqrt(alpha_s**2 + sigma_t**2)"
assert source.count(slip) == 1, "the slip is not there any more"
scope = vars(azula.sample).copy()
exec(compile(source.replace(slip, "torch.sqrt(alpha_s**2 + sigma_s**2)"), "documented", "exec"), scope)
released, documented = order(REABSampler), order(scope["REABSampler"])
assert released < 1.3, "the release converges faster now"
assert documented > 2.7, "the documented formula does not converge as it should"
PY
echo "as described"
