import math

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="needs the extra bench")

import fewstep as fs
from benchmarks.quality import distance_parts
from benchmarks.quality.results import Results
from fewstep.adapters import load_model
from fewstep.bench.classifier import load_classifier
from fewstep.bench.metrics import Moments


def test_cut_above_all_frequencies_a_distance_is_that_of_its_shapes(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data.npz"
    np.savez(data, images=np.zeros((2000, 32, 32, 3), np.uint8), labels=np.arange(2000) % 10)
    for name, value in {"IMAGES": 6, "CALLS": 2, "CLOSE": 4, "CUT": math.inf}.items():
        monkeypatch.setattr(distance_parts, name, value)
    monkeypatch.setattr(distance_parts, "SOLVERS", {"ddim": (fs.DDIM(), fs.karras)})
    size = load_classifier().features(torch.zeros(1, 3, 32, 32)).shape[1]
    unit = Moments(torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64))
    Results(tmp_path / "model", load_model().fingerprint).moments("network", lambda: unit)
    distance_parts.main(results=tmp_path, data=str(data))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    _, _, (name, whole, shapes, details, error), (solution, distance, *_, zero), *less = rows
    assert (name, solution, zero) == ("ddim", "the solution", "0.000")
    assert (shapes, details) == (whole, distance)
    assert whole != distance
    model = load_model()
    noise = fs.unit_noise(range(6), model.shape)
    images, exact = (
        fs.sample(model, noise, nfe=nfe, solver=solver, grid=grid, schedule=model.schedule).double()
        for nfe, solver, grid in ((2, fs.DDIM(), fs.karras), (4, fs.EVODiff(), None))
    )
    assert float(error) == pytest.approx((images - exact).square().mean().sqrt().item(), abs=6e-4)
    assert len(less) == 2
    assert all(float(row[-1]) > 0 for row in less)
