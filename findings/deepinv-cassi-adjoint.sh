#!/bin/sh
# deepinv 0.5.0: CompressiveSpectralImaging.A_adjoint has nothing to do with A, unless every sheared side is odd.
#
# `shear` moves channel i by i pixels, and back by `un=True`, by a convolution with a kernel as large as the image. Where
# a side is even, either also moves all channels by one pixel, in the same direction, so that there and back the image is
# two pixels off. The sides are those of the padded image, height or width + channels - 1: 33 x 33 with 6 channels is as
# wrong as 32 x 32 with 7, the example of the class's own documentation. The library's tests have (7, 37, 31), all odd.
#
# Seen on 2026-11-29 (Python 3.11, torch 2.13.0), the cosine between A_adjoint(w) and the adjoint by autograd, and the
# residual of A_dagger, |A(A_dagger(y)) - y| / |y|:
#     (7, 37, 31)    1.000    2e-06
#     (7, 32, 32)   -0.040    1e+10 or NaN
#     (6, 33, 33)    0.026    3e+09 or NaN
#
# Needs a Python with what deepinv requires (torch, torchvision, torchmetrics, h5py ...; PYTHON=...). Fails if the release
# behaves otherwise.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work" deepinv==0.5.0
PYTHONPATH="$work" "$python" - <<'PY'
import deepinv
import torch


def cosine(size, mode):
    torch.manual_seed(0)
    physics = deepinv.physics.CompressiveSpectralImaging(img_size=size, mode=mode)
    x = torch.rand(1, *size)
    y = physics.A(x)
    w = torch.randn_like(y)
    _, pull = torch.func.vjp(physics.A, x)
    (true,), claimed = pull(w), physics.A_adjoint(w)
    found = float((true * claimed).sum() / true.norm() / claimed.norm())
    left = float((physics.A(physics.A_dagger(y)) - y).norm() / y.norm())
    print(size, mode, f"cosine {found:.3f}, residual of A_dagger {left:.1g}")
    return found, left


for mode in ("ss", "sd"):
    found, left = cosine((7, 37, 31), mode)
    assert found > 0.999 and left < 1e-3, "odd sides are wrong now"
    for size in ((7, 32, 32), (6, 33, 33)):
        found, left = cosine(size, mode)
        assert abs(found) < 0.2 and not left < 10, "even sides are better now"
PY
echo "as described"
