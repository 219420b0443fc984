import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.solvers.core.inner import SPLIT_SUM, Inner, floored, sigmoid


@pytest.mark.parametrize(
    ("shape", "channel_dim", "kept"),
    [
        ((2, 3, 4, 5), 1, (2, 3, 1, 1)),
        ((2, 3, 4, 5), None, (2, 1, 1, 1)),
        ((2, 7, 3), -1, (2, 1, 3)),
        ((2, 3, 2, 4, 5), 1, (2, 3, 1, 1, 1)),
        ((2, 9), 1, (2, 1)),  # nothing but channels: per sample
        ((2, 9), None, (2, 1)),
    ],
)
def test_keeps_the_batch_and_the_channels(shape, channel_dim, kept):
    u, v = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    inner = Inner(u, channel_dim)
    got = inner.dot(u, v)
    assert got.shape == kept
    want = torch.zeros(kept, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        place = tuple(i if n > 1 else 0 for i, n in zip(index, kept, strict=True))
        want[place] += u[tuple(index)] * v[tuple(index)]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, SPLIT_SUM), (1, 3 * SPLIT_SUM // 2, 1), (200, 201), (3, 150, 151)])
@pytest.mark.parametrize("channel_dim", [1, None])
def test_long_sums_do_not_depend_on_the_batch(shape, channel_dim, two_threads):
    u, v = torch.randn(5, *shape, dtype=torch.float64), torch.randn(5, *shape, dtype=torch.float64)
    whole = Inner(u, channel_dim).dot(u, v)
    for i in range(5):
        one = Inner(u[i : i + 1], channel_dim).dot(u[i : i + 1], v[i : i + 1])
        assert torch.equal(whole[i : i + 1], one)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=200), st.sampled_from([torch.float32, torch.float64]))
def test_sigmoid_takes_each_element_alone(values, dtype):
    z = torch.tensor(values, dtype=dtype)
    got = sigmoid(z)
    torch.testing.assert_close(got, torch.sigmoid(z), rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)
    alone = torch.cat([sigmoid(one) for one in z.split(1)])
    assert torch.equal(got, alone)


def test_projection_onto_nothing_is_nothing():
    zero, one = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    inner = Inner(one, 1)
    assert inner.project(zero, zero).item() == 0
    assert inner.project(zero, one).item() == 0
    assert inner.project(one, zero).item() == 0
    assert inner.project(3 * one, one).item() == 3
    assert floored(torch.zeros(1)).item() > 0
