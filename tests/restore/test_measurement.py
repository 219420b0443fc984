"""What a measurement must be, and what is said of one that is none."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fewstep import EDM
from fewstep.restore import Linear, deblurring, inpainting, posterior, red_diff, superresolution
from fewstep.restore.measurement import linearised

SHAPE = (2, 12, 8)
MASK = (torch.arange(12 * 8).reshape(12, 8) % 3 > 0).double()
OPERATORS = {
    "inpainting": inpainting(MASK, SHAPE),
    "superresolution": superresolution(4, SHAPE),
    "deblurring": deblurring(1.0, SHAPE),
}


def rows(*shape):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def matrix(function, shape):
    size = math.prod(shape)
    return function(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1).T


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_adjoint_is_the_transposed_matrix(operator):
    measured = operator.A(rows(*SHAPE)).shape[1:]
    forward = matrix(operator.A, SHAPE)
    for each in (operator, Linear(operator.function, SHAPE)):  # known, and derived
        assert torch.allclose(matrix(each.A_adjoint, measured), forward.T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_what_is_known_of_it_is_so(operator):
    x, turn = rows(*SHAPE), torch.linalg.qr(rows(2)[:2]).Q
    at = linearised(operator, x)
    assert at.alike
    assert torch.allclose(operator.A(torch.einsum("cd,ndhw->nchw", turn, x)),
                          torch.einsum("cd,ndhw->nchw", turn, operator.A(x)), rtol=0, atol=1e-14)  # fmt: skip
    if operator is not OPERATORS["inpainting"]:
        along, across = at.tables
        assert torch.allclose(operator.A(x), along @ x @ across.T, rtol=0, atol=1e-14)


def test_a_mask_of_some_channels_alone_is_not_alike():
    for mask, alike in [(MASK, True), (MASK.expand(SHAPE), True), (torch.stack([MASK, 1 - MASK]), False)]:
        assert linearised(inpainting(mask, SHAPE), rows(*SHAPE)).alike == alike


def test_a_decoder_with_attention_is_linearised():
    """Whose fast kernels have no derivative in forward mode."""
    x, v = rows(1, 4, 4)[:2], rows(1, 4, 4)[1:]
    found = linearised(lambda x: scaled_dot_product_attention(x, x, x), x)
    want, along = torch.func.jvp(lambda x: (x @ x.mT / 2).softmax(-1) @ x, (x,), (v,))
    torch.testing.assert_close(found.measured, want)
    torch.testing.assert_close(found.forward(v), along)
    torch.testing.assert_close((found.adjoint(want) * v).sum(), (want * along).sum())


def test_each_measures_what_it_says():
    x = rows(*SHAPE)
    assert torch.equal(OPERATORS["inpainting"].A(x), x * MASK)
    means = x.reshape(3, 2, 3, 4, 2, 4).mean((3, 5))
    assert torch.allclose(OPERATORS["superresolution"].A(x), means, rtol=0, atol=1e-15)
    flat = torch.full_like(x, 0.3)
    assert torch.allclose(OPERATORS["deblurring"].A(flat), flat, rtol=0, atol=1e-15)
    point = torch.zeros(1, 2, 12, 8, dtype=torch.float64)
    point[0, 1, 6, 4] = 1
    spread = OPERATORS["deblurring"].A(point)[0, 1]
    assert spread[6, 5] / spread[6, 4] == pytest.approx(math.exp(-1 / 2), rel=1e-12)
    assert spread[5, 3] / spread[6, 4] == pytest.approx(math.exp(-1), rel=1e-12)


def test_a_function_that_is_not_linear_is_taken_by_its_derivative():
    x, v, w = rows(*SHAPE), rows(*SHAPE) / 2, rows(*SHAPE) / 3
    at = linearised(torch.sin, x)
    assert torch.equal(at.measured, x.sin())
    assert torch.allclose(at.forward(v), x.cos() * v, rtol=1e-14)
    assert torch.allclose(at.adjoint(w), x.cos() * w, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: inpainting(torch.ones(8, 12), SHAPE), r"mask must fit x of shape \(2, 12, 8\); got \(8, 12\)"),
        (lambda: inpainting(torch.ones(3, 2, 12, 8), SHAPE), "mask must fit"),
        (lambda: inpainting(MASK / 2, SHAPE), "mask must be a tensor of 0, not seen, and 1, seen"),
        (lambda: superresolution(3, SHAPE), "factor must be 2 or more and divide the sides"),
        (lambda: superresolution(1, SHAPE), "got factor=1"),
        (lambda: deblurring(0.0, SHAPE), "std must be positive and at most 2.33 pixels"),
        (lambda: deblurring(3.0, SHAPE), r"got std=3\.0"),
        (lambda: deblurring(math.nan, SHAPE), "got std=nan"),
        (lambda: deblurring(1e-200, SHAPE), "got std=1e-200"),
        (lambda: deblurring("1", SHAPE), "got std='1'"),
        (lambda: deblurring(1, (8,)), r"shape must be that of one image, \(C, H, W\); got \(8,\)"),
        (lambda: superresolution(2, (8,)), r"shape must be that of one image, \(C, H, W\); got \(8,\)"),
        (lambda: superresolution(2.0, SHAPE), r"got factor=2\.0"),
        (lambda: superresolution(np.float32(2), SHAPE), r"got factor=np\.float32\(2\.0\)"),
        (lambda: deblurring(True, SHAPE), "got std=True"),
    ],
)
def test_an_operator_that_cannot_be_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_integers_of_numpy_are_those_of_python(kind):
    x = rows(*SHAPE)
    assert torch.equal(superresolution(kind(4), SHAPE).A(x), OPERATORS["superresolution"].A(x))
    y = OPERATORS["superresolution"].A(x)
    given = [
        posterior(lambda x, t: x / 2, OPERATORS["superresolution"], y, noise=0.1, schedule=EDM(), iterations=count)
        for count in (3, kind(3))
    ]
    assert torch.equal(*(denoiser(x, 1.0) for denoiser in given))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_those_of_python(kind):
    x, value = rows(*SHAPE), kind(0.7)
    blur = deblurring(float(value), SHAPE)
    assert torch.equal(deblurring(value, SHAPE).A(x), blur.A(x))
    y = blur.A(x)
    denoisers = (posterior(lambda x, t: x / 2, blur, y, noise=each, schedule=EDM()) for each in (float(value), value))
    assert torch.equal(*(denoiser(x, 1.0) for denoiser in denoisers))
    options = {"schedule": EDM(), "seeds": range(3), "nfe": 3}
    weights = ({"weight": lambda node: float(value)}, {"weight": lambda node: value}, {"weight": value})
    due, *others = (
        red_diff(lambda x, t: x / 2, blur, y, noise=each, rate=each, **weight, **options)
        for each, weight in zip((float(value), value, value), weights, strict=True)
    )
    assert all(torch.equal(other, due) for other in others)


class Unmatched:
    """Back-projection without the factor of the means: what many call an adjoint."""

    def A(self, x):
        return OPERATORS["superresolution"].A(x)

    def A_adjoint(self, y):
        return y.repeat_interleave(4, -1).repeat_interleave(4, -2)


def refused(operator, y, noise=0.1, error=ValueError):
    with pytest.raises(error) as caught:
        posterior(lambda x, t: x, operator, y, noise=noise, schedule=EDM())
    return str(caught.value)


def test_what_does_not_fit_is_said_at_the_door():
    operator, y = OPERATORS["superresolution"], rows(2, 3, 2)
    told = refused(Unmatched(), y)
    assert "A_adjoint is not the adjoint of operator.A" in told
    assert "restore.Linear" in told
    posterior(lambda x, t: x, Linear(Unmatched().A, SHAPE), y, noise=0.1, schedule=EDM())
    assert "does not fit the operator" in refused(operator, rows(2, 3, 3))
    assert "does not fit the operator" in refused(OPERATORS["inpainting"], rows(2, 12, 9))
    for hole in (math.nan, math.inf):
        broken = y.clone()
        broken[0, 0, 0, 0] = hole
        assert "y must be finite" in refused(operator, broken)
    assert "got torch.int64" in refused(operator, y.long())
    assert "y must be a torch.Tensor; got list" in refused(operator, y.tolist(), error=TypeError)
    assert "operator must have A(x)" in refused("inpaint", y, error=TypeError)
    for noise in (0, -1.0, math.nan, math.inf, True, "0.1", torch.tensor(0.1)):
        assert f"got noise={noise!r}" in refused(operator, y, noise)
    turned = Linear(operator.function, SHAPE, lambda y: y)
    assert "of y of shape (3, 2, 3, 2) the adjoint is (3, 2, 3, 2), x (2, 12, 8)" in refused(turned, y)
    doubled = Linear(operator.function, SHAPE, lambda y: 2 * operator.A_adjoint(y))
    assert "A_adjoint is not the adjoint of operator.A" in refused(doubled, y)


class OfAnyShape:
    """As the operators of deepinv are: it takes one image for a batch of its colours."""

    def __init__(self, operator):
        self.A, self.A_adjoint = operator.function, operator.adjoint


MEASURES = {
    **OPERATORS,
    "derived": Linear(OPERATORS["superresolution"].function, SHAPE),
    "of any shape": OfAnyShape(OPERATORS["superresolution"]),
    "of one dimension": Linear(lambda x: x.flatten(1)[:, :9], SHAPE),
    "a function": torch.sin,
}


@pytest.mark.parametrize("operator", MEASURES.values(), ids=MEASURES)
def test_one_measurement_is_told_to_be_made_a_batch(operator):
    x = rows(*SHAPE)
    y = getattr(operator, "A", operator)(x)[0]
    options = {"noise": 0.1, "schedule": EDM()}
    with pytest.raises(ValueError, match=r"y must be .*give y\[None\]$"):
        posterior(lambda x, t: x / 2, operator, y, **options)(x[:1], 1.0)
    posterior(lambda x, t: x / 2, operator, y[None], **options)(x[:1], 1.0)


def test_one_measurement_with_as_many_colours_as_samples_is_told_so_too():
    y, options = rows(*SHAPE)[0], {"noise": 0.1, "schedule": EDM()}
    told = r"y must be a batch.*got one measurement, \(2, 12, 8\): give y\[None\]$"
    for operator in (OfAnyShape(OPERATORS["inpainting"]), torch.sin):
        with pytest.raises(ValueError, match=told):
            posterior(lambda x, t: x / 2, operator, y, **options)(rows(*SHAPE)[:2], 1.0)
    with pytest.raises(ValueError, match=told):
        red_diff(lambda x, t: x / 2, torch.sin, y, start=rows(*SHAPE)[:2], seeds=range(2), **options)
    with pytest.raises(ValueError, match=r"start must be .*if y is one measurement, give y\[None\]$"):
        red_diff(lambda x, t: x / 2, torch.sin, y, start=rows(*SHAPE)[:1], seeds=[0], **options)


class Nothing(Unmatched):
    """What a function that forgets its return gives."""

    def __init__(self, name):
        setattr(self, name, lambda x: None)


@pytest.mark.parametrize("name", ["A", "A_adjoint"])
def test_an_operator_that_returns_nothing_is_refused(name):
    y = OPERATORS["superresolution"].A(rows(*SHAPE))
    assert f"operator's {name}(" in refused(Nothing(name), y, 0.1, TypeError)


@pytest.mark.parametrize("noise", [1e300, 1e-200, "1"])
def test_noise_whose_square_cannot_be_is_refused(noise):
    y = OPERATORS["superresolution"].A(rows(*SHAPE))
    assert f"got noise={noise!r}" in refused(OPERATORS["superresolution"], y, noise, ValueError)
