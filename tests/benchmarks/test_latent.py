"""The latent model: an error of the bench is that of a run, and the page is of the best grid of each peer."""

from pathlib import Path

import pytest
import torch

import fewstep as fs
from benchmarks import latent, latent_model
from benchmarks.quality.results import Results


class Gaussians:
    """As an EDM model: N(0, 1) in every element of the latents."""

    schedule, shape = fs.EDM(1e-5, 1e5), (4, 2, 2)

    def __call__(self, x, t):
        return x / (1 + t**2)


@pytest.fixture
def results(tmp_path, monkeypatch):
    for name, value in {"BUDGETS": (5, 8), "PEERS": ("ddim", "dpmpp-2m", "unipc-3")}.items():
        monkeypatch.setattr(latent, name, value)
    made = Results(tmp_path)
    latent.fill(Gaussians(), made, str)
    return made


def test_every_cell_is_measured_once(results):
    cells = len(latent.SCHEDULES) * len(latent.BUDGETS) * (1 + len(latent.PEERS) * len(latent.GRIDS))
    assert len(list(results)) == cells
    latent.fill(Gaussians(), results, pytest.fail)


def test_an_error_is_that_of_a_run_to_the_exact_solution(results):
    # Of N(0, 1) the solution on a flow is the noise itself: alpha^2 + sigma^2 is 1 at both ends.
    noise = fs.sampling.unit_noise(latent.SEEDS, (4, 2, 2))
    schedule = fs.Flow()

    def denoiser(x, t):
        return (1 - t) * x / ((1 - t) ** 2 + t**2)

    images = fs.sample(denoiser, noise, nfe=8, schedule=schedule)
    expected = (images - noise).square().mean().sqrt().item()
    ours = latent.best(results, "flow", 8, ["evodiff"])
    assert ours.rmse == pytest.approx(expected, rel=0.01)  # of which the converged solution errs by 0.004
    assert ours.rmse < latent.best(results, "flow", 8, ["ddim"]).rmse


def test_the_page_has_the_best_grid_of_each_peer(results):
    text = latent.page(results)
    for schedule in latent.SCHEDULES:
        for nfe in latent.BUDGETS:
            found = latent.best(results, schedule, nfe, ["unipc-3"])
            assert found.rmse == min(each.rmse for each in results if each.key[:3] == (schedule, nfe, "unipc-3"))
            assert f"{found.rmse:.4f} ({found.grid})" in text
    assert text.count(f" of {len(latent.SCHEDULES) * len(latent.BUDGETS)} cells.") == 2
    assert "nan" not in text


def test_crops_are_of_the_photographs_and_a_function_of_the_draw():
    images = [torch.arange(3 * 40 * 50.0).reshape(3, 40, 50), -torch.ones(3, 32, 33)]
    found = latent_model.crops(images, 50, torch.Generator().manual_seed(0))
    assert torch.equal(found, latent_model.crops(images, 50, torch.Generator().manual_seed(0)))
    first = found[found[:, 0, 0, 0] >= 0]
    assert 10 < len(first) < 40
    steps = first.diff(dim=-1)
    assert torch.equal(steps.abs(), torch.ones_like(steps))  # whole rows of the photograph, either way round
    assert 0 < (steps > 0).float().mean() < 1
    assert torch.equal(first.diff(dim=-2), torch.full_like(first[:, :, 1:], 50.0))


def test_the_latent_model_is_trained_once_and_answers_as_a_denoiser(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    for name, value in {"LATENTS": 8, "TRAINED": 4, "WIDTHS": (16,)}.items():
        monkeypatch.setattr(latent_model, name, value)
    images = [torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1]
    model = latent_model.latent_model(tmp_path, images, coding=1, denoising=2)
    again = latent_model.latent_model(tmp_path, images, coding=1, denoising=2)
    assert again.fingerprint == model.fingerprint
    x = torch.randn(3, *latent_model.SHAPE, generator=torch.Generator().manual_seed(1))
    assert model(x, 1e-2).sub(x).abs().max() < 0.1  # sigma / sqrt(sigma^2 + 1) of the network's answer
    with pytest.raises(ValueError, match="of 2 steps and not 3"):
        latent_model.latent_model(tmp_path, images, coding=1, denoising=3)


def test_the_page_is_that_of_the_records():
    page = Path(latent.__file__).parents[1] / "docs" / "latent.md"
    assert page.read_text(encoding="utf-8") == latent.page(Results(latent.RECORDS))
