"""docs/comfyui.md: what is made of the errors that ComfyUI measures, which needs no ComfyUI."""

from pathlib import Path

import pytest
import torch

from benchmarks import comfyui
from fewstep.integrations.comfy import DROPDOWN

PAGE = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text()


def errors(**special):
    """1 everywhere, but for the samplers given: `sampler__scheduler=error`."""
    levels = (*comfyui.THEIRS, comfyui.LEVELS)
    names = (comfyui.OURS, *comfyui.PEERS)
    found = {(name, each): [torch.ones(2)] * len(comfyui.BUDGETS) for name in names for each in levels}
    for key, error in special.items():
        found[tuple(key.split("__"))] = [torch.full((2,), error)] * len(comfyui.BUDGETS)
    return found


def test_the_best_of_a_sampler_is_shown_once_and_the_least_is_bold():
    found = errors(euler__karras=0.5, dpmpp_2m__simple=0.25)
    rows = comfyui.rows_of(found, comfyui.best_of(found))
    assert [row[1] for row in rows if row[0] == "euler"] == ["simple", "karras", "fewstep"]
    assert [row[1] for row in rows if row[0] == "dpmpp_2m"] == ["simple", "fewstep"]
    bold = [row[:2] for row in rows if "**" in row[2]]
    assert bold == [["dpmpp_2m", "simple"]]
    assert rows[0][-1] == "1.0000"


def test_ours_is_told_beside_the_best_peer_and_euler():
    found = errors(evodiff__fewstep=0.2, ipndm__beta=0.4, euler__normal=0.5, evodiff__normal=0.6)
    told = comfyui.summary(found, errors(evodiff__fewstep=0.5), comfyui.best_of(found), 0.7)
    assert "of errors to the solution at σ = 0 0.50, of median latents 0.50." in told
    assert "over the best of the others, `ipndm` on `beta`, in geometric mean **0.50 ± 0.00** (the aim was 0.7)" in told
    assert "on its best scheduler: 0.50 ± 0.00, " in told
    assert "; geometric mean 0.50, of errors" in told
    assert f"at most 1.20 ± 0.00 (normal, {comfyui.BUDGETS[-1]} calls), and above 1.05 in 8 of 72 cells" in told


def test_the_standard_error_of_a_ratio_is_that_of_its_logarithm():
    """Of mean squares 2 and 2, the shares of two images differ by half of theirs: 1/4 +- 1/4 of the logarithm."""
    ours, theirs = torch.tensor([1.0, 3.0]).sqrt(), torch.tensor([2.0, 2.0]).sqrt()
    assert comfyui.over([ours], [theirs]) == pytest.approx((1.0, 0.25))
    assert comfyui.over([3 * ours], [theirs]) == pytest.approx((3.0, 0.75))
    # The errors of the two budgets fall on different images, so that their mean is known.
    assert comfyui.over([ours, ours.flip(0)], [theirs, 4 * theirs]) == pytest.approx((0.5, 0.0))


def test_more_images_are_joined_where_they_were_measured():
    """The ratio of a pair that has more images than another is of those that both have."""
    found = comfyui.joined(errors(), {("evodiff", "karras"): [torch.zeros(3)] * len(comfyui.BUDGETS)})
    assert {len(each) for each in found["evodiff", "karras"]} == {5}
    assert comfyui.over(found["evodiff", "karras"][:1], found["euler", "karras"][:1]) == (1.0, 0.0)


def test_the_page_is_this_text_and_has_every_sampler():
    start = comfyui.INTRODUCTION.partition("In ComfyUI {version}")[0]
    assert PAGE.startswith(start)
    for kind, cfg in comfyui.SECTIONS:
        assert f"## {comfyui.TITLES[kind]}, guidance {cfg:g}" in PAGE
    for name in (*comfyui.PEERS, comfyui.OURS):
        assert PAGE.count(f"\n| {name} | simple |") == len(comfyui.SECTIONS)
    for name in DROPDOWN:
        assert f"`{name}`" in start


def test_comfyui_has_to_be_pointed_to(monkeypatch):
    monkeypatch.delenv("COMFYUI_SRC", raising=False)
    with pytest.raises(ValueError, match="COMFYUI_SRC must be set"):
        comfyui.page(print)
