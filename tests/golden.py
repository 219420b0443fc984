"""Golden vectors: the problem they were made on, and how to compare with them."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fewstep as fs
from benchmarks.problems import GaussianMixture
from fewstep.bench.compare import Counted

FOLDER = Path(__file__).parent / "goldens"
GRIDS = {
    "logSNR": fs.log_snr,
    "logsnr": fs.log_snr,
    "edm": fs.karras,
    "polynomial": fs.karras,
    "time_uniform": fs.time_uniform,
    "time_quadratic": fs.time_quadratic,
}
# "Within ten times each golden's stated tolerance".
TIMES_TOL = 10


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def entries(name: str) -> dict[str, dict[str, Any]]:
    return json.loads(str(arrays(name)["meta_json"]))["entries"]


@functools.cache
def problem() -> GaussianMixture:
    z = arrays("problem")
    shape = z["x_T"].shape[1:]
    return GaussianMixture(*(torch.tensor(z[k]) for k in ("weights", "means", "eigvals", "eigvecs")), shape)


def noise() -> torch.Tensor:
    return torch.tensor(arrays("problem")["x_T"])


def sd_table() -> fs.Discrete:
    return fs.Discrete(arrays("problem")["note_sd_alphas_cumprod"])


def zju_nodes(key: str) -> tuple[fs.Node, ...]:
    """The nodes of a run of diff-sampler, by our grid if it is one of ours."""
    facts = entries("zju_diff_solvers")[key]
    closing = bool(facts["denoise_to_zero"])
    if facts["schedule"] == "time_uniform":  # of a VP process of its own; the nodes are stored
        sigmas = arrays("zju_diff_solvers")[f"grid__time_uniform__rho1__nodes{facts['nodes']}"]
        return fs.from_times(fs.EDM(), [*sigmas, *[0.0] * closing])
    return GRIDS[facts["schedule"]](fs.EDM(), facts["nodes"] - 1 + closing, to_zero=closing)


def assert_matches(
    file: str, key: str, solver: fs.Solver, schedule: fs.Schedule, nodes: Sequence[fs.Node], nfe: int | None = None
) -> None:
    """The run equals the golden within ten times its tolerance, at the same number of calls."""
    facts = entries(file)[key]
    denoiser = Counted(problem().denoiser(schedule))
    start = noise() * nodes[0].sigma if isinstance(schedule, fs.EDM) else noise()
    got = fs.integrate(denoiser, start, nodes, solver=solver, schedule=schedule, nfe=nfe)
    assert denoiser.calls == facts["nfe"]
    np.testing.assert_allclose(got.numpy(), arrays(file)[key], rtol=0, atol=TIMES_TOL * facts["tol"])
