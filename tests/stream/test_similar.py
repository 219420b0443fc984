import math

import pytest
import torch

from fewstep.stream import Similar


def pair(cosine):
    """Two frames of that cosine similarity."""
    return torch.tensor([1.0, 0.0]), torch.tensor([cosine, math.sqrt(1 - cosine**2)])


@pytest.mark.parametrize(("cosine", "threshold", "chance"), [(0.99, 0.98, 0.5), (0.9, 0.6, 0.75), (0.7, 0.6, 0.25)])
def test_a_frame_is_skipped_with_the_chance_of_the_paper(cosine, threshold, chance):
    skip, draws = Similar(threshold), 4000
    skipped = sum(skip(*pair(cosine)) for _ in range(draws))
    assert abs(skipped - chance * draws) < 4 * math.sqrt(draws * chance * (1 - chance))


@pytest.mark.parametrize(("cosine", "always"), [(1.0, True), (0.98, False), (0.5, False), (-1.0, False)])
def test_the_same_frame_always_is_and_one_at_the_threshold_never(cosine, always):
    skip = Similar(0.9800001)
    assert {skip(*pair(cosine)) for _ in range(200)} == {always}


def test_a_frame_that_holds_nan_is_never_skipped_nor_skipped_after():
    bad = torch.tensor([torch.nan, 1.0])
    assert not any(Similar()(*frames) for frames in [(bad, bad), (bad, torch.ones(2)), (torch.ones(2), bad)])


def test_a_seed_is_a_run():
    def run(seed):
        skip = Similar(0.98, seed=seed)
        return [skip(*pair(0.99)) for _ in range(50)]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_a_threshold_is_a_similarity(threshold):
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), a cosine similarity; got threshold="):
        Similar(threshold)
