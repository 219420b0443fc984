import pytest

pytest.importorskip("diffusers", reason="needs the extra diffusers")

from benchmarks import overhead


def test_every_candidate_is_timed_in_one_run():
    figures = overhead.measure((1, 1, 4, 4), rounds=1)
    assert set(figures) == {*overhead.SCHEDULERS, *overhead.OURS}
    assert all(times.again > 0 for times in figures.values())
