"""The extension in a real Forge, reForge or Automatic1111, with a model that is known exactly.

WEBUI_SRC points to a checkout with the `repositories` that it clones, and WEBUI_PYTHON to a Python with what it
requires, if not this one.
"""

import math
import os
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.integrations import webui
from fewstep.integrations.kdiffusion import get_sigmas
from fewstep.table import SOLVERS
from integrations.webui_real import MEAN, SHARES, STD, Refused, WebUI, denoised, kin, python

if "WEBUI_SRC" not in os.environ:
    pytest.skip("needs WEBUI_SRC, a checkout of Forge, reForge or Automatic1111", allow_module_level=True)

SOURCES = Path(os.environ["WEBUI_SRC"])
FLOWS = {"forge": ["SD3", "Flux"], "reforge": [], "a1111": ["SD3"]}  # that they know
KINDS = ["SD", *FLOWS[kin(SOURCES)]]
# t = 1 / 1000 of shift 3, and 1 / 10000 of shift exp(1.15)
ENDS = {"SD": (0.0291675, 14.614642), "SD3": (3 / (3 + 999), 1.0), "Flux": (1 / (1 + 9999 * math.exp(-1.15)), 1.0)}
EXACT = 2e-5  # float32: 1e-7 of noise of 60, times a guidance of 5
DATA_STD = (MEAN**2 + STD**2) ** 0.5
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def ui(tmp_path_factory):
    running = WebUI(SOURCES, python(), tmp_path_factory.mktemp("webui") / "base")
    yield running
    running.close()


def asked(ui, kind="SD", sampler="EVODiff", steps=8, **more):
    """The passes of an image: one, or two."""
    return ui.ask(kind=kind, sampler_name=sampler, steps=steps, **more)["passes"]


def ours(kind, done, solver="evodiff", cfg=1.0, heard=None):
    """What fewstep makes of the same noise on the same levels by itself; `heard` gets what the model answers."""
    flow, heard = kind != "SD", [] if heard is None else heard

    def guided(x, t):
        without, prompted = (denoised(x, t, share, flow) for share in SHARES)
        heard.append(without + cfg * (prompted - without))
        return heard[-1]

    nodes = [fs.Node(s, 1 - s if flow else 1.0, s) for s in done["sigmas"].tolist()]
    schedule = fs.Flow() if flow else fs.EDM(ENDS[kind][0], 80.0)
    return fs.integrate(guided, done["x"], nodes, solver=SOLVERS[solver].suited(flow), schedule=schedule)


def levels(kind, steps):
    return get_sigmas(fs.karras if kind == "SD" else fs.focused, steps, *ENDS[kind], flow=kind != "SD")


def test_the_names_are_in_the_dropdowns_once(ui):
    for again in (False, True):
        names = ui.ask(what="names", again=again)
        assert names["samplers"][-len(webui.SAMPLERS) :] == list(webui.SAMPLERS)
        assert names["schedulers"][-len(webui.SCHEDULERS) :] == list(webui.SCHEDULERS.values())
        assert all(len(set(each)) == len(each) for each in names.values())
    assert "fewstep" not in ui.log.read_text()  # it would be in the trace of an error


@each_kind
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("label", webui.SAMPLERS)
def test_an_image_is_that_of_fewstep_on_the_same_noise(ui, kind, cfg, label):
    for scheduler in ("Automatic", "Simple"):
        (done,) = asked(ui, kind, label, scheduler=scheduler, cfg_scale=cfg)
        noise = torch.stack([torch.randn((4, 8, 8), generator=torch.manual_seed(seed)) for seed in (1, 2)])
        torch.testing.assert_close(done["x"], noise * done["sigmas"][0], atol=1e-5, rtol=0)
        if scheduler == "Automatic":
            torch.testing.assert_close(done["sigmas"], levels(kind, 8), atol=0, rtol=2e-5)
        torch.testing.assert_close(done["latents"], ours(kind, done, webui.SAMPLERS[label], cfg), atol=EXACT, rtol=0)
        assert done["calls"] == done["steps"] == 8


@each_kind
def test_an_image_does_not_depend_on_its_batch(ui, kind):
    (both,) = asked(ui, kind, cfg_scale=5.0)
    for i in range(2):
        (one,) = asked(ui, kind, cfg_scale=5.0, seed=1 + i, batch_size=1)
        assert torch.equal(one["latents"], both["latents"][i : i + 1])


@each_kind
def test_the_page_is_told_of_each_step_and_shown_a_preview(ui, kind):
    (done,) = asked(ui, kind)
    at = done["sigmas"][:-1].tolist()
    assert [[i, i] for i in range(8)] == [[i, step] for i, _, step in done["told"]]
    assert [sigma for _, sigma, _ in done["told"]] == pytest.approx(at, rel=1e-6)
    assert done["preview"]


@each_kind
def test_an_interrupted_image_is_what_was_denoised_last(ui, kind):
    (done,) = asked(ui, kind, interrupt_at=3)
    assert done["calls"] == 4
    (whole,) = asked(ui, kind)
    heard = []
    torch.testing.assert_close(whole["latents"], ours(kind, whole, heard=heard), atol=EXACT, rtol=0)
    torch.testing.assert_close(done["latents"], heard[3], atol=EXACT, rtol=0)


@each_kind
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_image_to_image_begins_where_their_samplers_do(ui, kind, strength):
    given = {"init": [200, 100, 50], "denoising_strength": strength, "steps": 10}
    (done,) = asked(ui, kind, **given)
    (theirs,) = asked(ui, kind, "Euler", scheduler="Fewstep", **given)
    assert torch.equal(done["x"], theirs["x"])
    assert torch.equal(done["sigmas"], theirs["sigmas"])
    made = min(int(10 * strength) + 1, 10)
    assert done["calls"] == done["steps"] == len(done["told"]) == made
    torch.testing.assert_close(done["sigmas"], levels(kind, 10)[-made - 1 :], atol=0, rtol=2e-5)
    torch.testing.assert_close(done["latents"], ours(kind, done), atol=EXACT, rtol=0)


@each_kind
def test_inpainting_leaves_the_rest_as_it_was(ui, kind):
    made = ui.ask(kind=kind, sampler_name="EVODiff", steps=8, init=[200, 100, 50], denoising_strength=0.7, mask=True)
    kept = made["images"][0].reshape(64, 64, 3)[:, 48:]
    assert (kept - torch.tensor([200, 100, 50])).abs().max() <= 1


@each_kind
def test_a_second_pass_at_twice_the_size(ui, kind):
    given = {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 2.0, "steps": 6}
    first, second = asked(ui, kind, denoising_strength=0.5, hr_second_pass_steps=5, **given)
    assert first["latents"].shape[-1] * 2 == second["latents"].shape[-1]
    torch.testing.assert_close(first["latents"], ours(kind, first), atol=EXACT, rtol=0)
    torch.testing.assert_close(second["latents"], ours(kind, second), atol=EXACT, rtol=0)
    torch.testing.assert_close(second["sigmas"], levels(kind, 10)[-6:], atol=0, rtol=2e-5)
    first, second = asked(ui, kind, denoising_strength=0.0, **given)
    assert second["calls"] == 0
    assert torch.equal(second["x"], second["latents"])


@each_kind
def test_settings_for_noise_on_the_way_change_nothing(ui, kind):
    made = ui.ask(kind=kind, sampler_name="EVODiff", steps=8)
    for settings in ({"eta_ancestral": 0.5}, {"s_noise": 1.05}, {"s_churn": 0.3}, {"eta_noise_seed_delta": 7}):
        again = ui.ask(kind=kind, sampler_name="EVODiff", steps=8, options=settings)
        assert torch.equal(again["passes"][0]["latents"], made["passes"][0]["latents"])
        assert again["text"] == made["text"]


@each_kind
def test_without_the_next_to_last_level_there_are_as_many_calls(ui, kind):
    (done,) = asked(ui, kind, options={"always_discard_next_to_last_sigma": True})
    more = levels(kind, 9)
    torch.testing.assert_close(done["sigmas"], torch.cat([more[:-2], more[-1:]]), atol=0, rtol=2e-5)
    assert done["calls"] == 8
    torch.testing.assert_close(done["latents"], ours(kind, done), atol=EXACT, rtol=0)


@each_kind
def test_the_levels_are_read_back_from_the_text_of_an_image(ui, kind):
    made = ui.ask(kind=kind, sampler_name="EVODiff", steps=8, scheduler="Fewstep focused")
    assert "Sampler: EVODiff, Schedule type: Fewstep focused" in made["text"]
    (old,) = asked(ui, kind, "EVODiff Fewstep focused")  # as texts of before 1.9 have it
    assert torch.equal(old["latents"], made["passes"][0]["latents"])


@each_kind
def test_their_samplers_take_our_levels(ui, kind):
    """Also where these end above 0: what draws no noise reaches the same image as ours does."""
    given = {"scheduler": "Fewstep", "steps": 40, "batch_size": 2}
    (best,) = asked(ui, kind, **given)
    for label in ui.ask(what="names")["samplers"]:
        (done,) = asked(ui, kind, label, **given)
        if not done["latents"].isfinite().all():  # reForge's for rectified flows, where the model is none
            (done,) = asked(ui, kind, label, **{**given, "scheduler": "Karras"})
            assert not done["latents"].isfinite().all(), label
        if label in ("Euler", "Heun", "LMS", "DPM2", "DPM++ 2M", "HeunPP2", "IPNDM", "DEIS"):
            assert (done["latents"] - best["latents"]).square().mean().sqrt() < 0.06 * DATA_STD, label


@pytest.mark.parametrize("kind", KINDS[1:])
def test_levels_and_settings_that_no_flow_can_have_are_refused(ui, kind):
    with pytest.raises(Refused, match="take those made for its model"):
        asked(ui, kind, scheduler="Align Your Steps")
    with pytest.raises(Refused, match="Use old karras scheduler sigmas"):
        asked(ui, kind, options={"use_old_karras_scheduler_sigmas": True})


def test_a_range_up_to_pure_noise(ui):
    (done,) = asked(ui, "SD", steps=12, options={"sd_noise_schedule": "Zero Terminal SNR"})
    assert done["sigmas"][0] > 4000
    torch.testing.assert_close(done["latents"], ours("SD", done), atol=EXACT * 300, rtol=0)  # of noise 300 times that
    assert DATA_STD / 2 < done["latents"].std() < 2 * DATA_STD
