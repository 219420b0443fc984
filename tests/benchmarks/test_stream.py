"""docs/stream.md: its words are the benchmark's, and its figures bear out what they say."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
from benchmarks import patches, stream
from fewstep.adapters.unet2d import EDMModel

PAGE = (Path(__file__).parents[2] / "docs" / "stream.md").read_text(encoding="utf-8")
WAYS = ["none", *(f"by {known}{at}" for known in ("the frame", "one call") for at in ("", f", above {stream.ABOVE:g}"))]


def tables(text):
    """Of each table its rows, without the head."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    return [[row.strip("| \n").split(" | ") for row in table.splitlines()[2:]] for table in found]


def words(text):
    """All but figures' tables and the machine."""
    return re.sub(r"\d+ threads on \S+", "", "\n".join(line for line in text.splitlines() if line[:1] != "|"))


def figures():
    throughput, guidance, _, late = tables(PAGE)
    times = {name: float(seconds) for name, seconds, *_ in throughput}
    left = {(way, s): float(cell) for way, *row in guidance for s, cell in zip(stream.SCALES, row, strict=True)}
    stale = {(name, int(nfe)): tuple(map(float, row[:3])) for name, nfe, *row in late}
    return times, left, stale


def test_the_page_is_the_generator_s_with_all_rows():
    times, left, stale = figures()
    written = stream.page(times, left, stale)
    assert words(written) == words(PAGE)
    assert [[row[:2] for row in table] for table in tables(written)] == [
        [row[:2] for row in table] for table in tables(PAGE)
    ]
    assert list(left) == [(way, scale) for way in WAYS for scale in stream.SCALES]
    assert list(stale) == [(solver, nfe) for solver in ("EVODiff", "DDIM") for nfe in (5, 8, 12, 20)]


def test_its_figures_say_what_its_words_say():
    times, left, stale = figures()
    assert times[stream.ALONE] >= 1.3 * times["8 phases"]
    for scale in stream.SCALES:
        assert left["by one call, above 1", scale] < left["none", scale] < left["by the frame", scale]
    assert stale["EVODiff", 8][0] < stale["EVODiff", 20][1]
    for nfe in patches.BUDGETS:
        (ours, both, _), (ddim, late, _) = stale["EVODiff", nfe], stale["DDIM", nfe]
        assert both < late
        assert late / ddim < both / ours


def test_a_half_sees_the_other_as_it_was_one_call_ago():
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)
    late = patches.Late(layer)
    first, second = torch.randn(2, 1, 3, 8, 8)
    assert torch.equal(late(first), layer(first))
    seen = torch.cat([second[:, :, :4], first[:, :, 4:]], 2)
    got = late(second)
    assert torch.equal(got[:, :, :4], layer(seen)[:, :, :4])
    assert torch.equal(got[:, :, :3], layer(second)[:, :, :3])  # too far in to see the other half
    assert not torch.equal(got[:, :, 3:5], layer(second)[:, :, 3:5])
    assert torch.equal(late(second), layer(second))  # nothing has changed since


def test_two_devices_of_a_network_that_mixes_no_pixels_make_what_one_makes():
    class Point(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, time, class_labels):
            return SimpleNamespace(sample=self.weight * x)

    model = EDMModel(Point(), (3, 4, 4), fs.EDM(), 0.5, 250.0, classes=("a",), null_label=1)
    (one, two, apart) = patches.errors(model, images=2, budgets=(4,), converged=20)["EVODiff", 4]
    assert apart == 0
    assert one == two > 0


def test_a_frame_guided_by_one_call_is_guided_once(monkeypatch):
    """Of the first call alone, where what is known is the unconditional answer itself."""
    monkeypatch.setattr(stream, "NFE", stream.START + 1)

    class Model:
        schedule, shape = fs.EDM(), (3, 2, 2)

        def __call__(self, x, t):
            return x / (1 + t * t)

        def conditioned(self, label):
            return fs.as_denoiser(lambda x, t: (x + t * t) / (1 + t * t), "sample", self.schedule)

    frames = torch.randn(4, 3, 2, 2)
    left = stream.guidance(Model(), frames)
    for scale in stream.SCALES:
        assert left["by one call", scale] == pytest.approx(0, abs=1e-6)
        assert left["none", scale] > 1e-2
