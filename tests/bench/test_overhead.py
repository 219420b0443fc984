import pytest

from fewstep.bench import overhead


def test_every_candidate_is_timed_in_one_run():
    pytest.importorskip("diffusers", reason="needs the extra bench")
    from fewstep.integrations.diffusers import EVODiffScheduler

    figures = overhead.measure((1, 1, 4, 4), rounds=1, schedulers={"ours": EVODiffScheduler})
    assert set(figures) == {overhead.BASE, "diffusers DPM++ 2M", "diffusers Euler", "ours", *overhead.OURS}
    assert all(run > 0 for _, run in figures.values())
