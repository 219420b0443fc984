#!/bin/sh
# diffusers 0.42.1: with rescale_betas_zero_snr=True the noisiest level of the default betas is less noisy than the next.
#
# At zero terminal SNR the last sigma would be infinite. EulerDiscrete, EulerAncestral, DPMSolverMultistep and UniPC put
# alphas_cumprod = 2^-24 there, sigma = 4096. On linear betas from 0.0001 to 0.02, the default of these classes, the
# entry before it has sigma = 15406 already, and the one before that 7668: the first steps of a run over all timesteps
# go up in noise. On "scaled_linear" of Stable Diffusion and on the cosine the table stays sorted.
#
# Seen on 2026-11-30 (Python 3.11, torch 2.13.0), the last four entries of the table, as sigma / alpha:
#     linear           5088.8  7668.0  15406.0  4096.0
#     scaled_linear     748.0  1124.5   2254.2  4096.0
#     cosine            216.2   326.0    662.6  4096.0
#
# Needs a Python with torch (PYTHON=...). Fails if the release behaves otherwise.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --target "$work" diffusers==0.42.1
PYTHONPATH="$work" "$python" - <<'PY'
import diffusers

SD = {"beta_start": 0.00085, "beta_end": 0.012}
TABLES = {"linear": {}, "scaled_linear": SD, "squaredcos_cap_v2": {}}
for name in ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
    for betas, ends in TABLES.items():
        made = getattr(diffusers, f"{name}Scheduler")
        scheduler = made(rescale_betas_zero_snr=True, beta_schedule=betas, **ends)
        table = scheduler.alphas_cumprod.double()
        sigmas = ((1 - table) / table).sqrt()
        print(f"{name:24} {betas:18}", *(f"{sigma:.1f}" for sigma in sigmas[-4:]))
        rises = bool((sigmas.diff() > 0).all())
        assert rises == (betas != "linear"), "the table is sorted otherwise now"
        assert abs(sigmas[-1] - 4096) < 1, "the last level is another now"
    scheduler = made(rescale_betas_zero_snr=True)
    scheduler.set_timesteps(1000)
    assert scheduler.sigmas[1] > 3 * scheduler.sigmas[0], "a run over all timesteps starts in order now"
PY
echo "as described"
