"""Models, extractors and scores that a bench finds as `fakes:name`: cheap, and exact wherever they run."""

import time

import torch

from fewstep import EDM, Flow

VARIANCE = 0.25


class Gaussian:
    """The denoiser of pixels N(0.3, VARIANCE): a pixel of its answer depends on that pixel alone."""

    shape = (3, 8, 8)

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __call__(self, x, t):
        time.sleep(self.seconds)
        return 0.3 + (x - 0.3) * (VARIANCE / (VARIANCE + t * t))


class Failing(Gaussian):
    """Throws at its 37th batch, of two calls each."""

    calls = 0

    def __call__(self, x, t):
        self.calls += 1
        if (self.calls + 1) // 2 == 37:
            raise ValueError("out of memory, say")
        return super().__call__(x, t)


def gaussian():
    return Gaussian(), EDM()


def constant():
    """Whose paths are straight on a flow, and whose images have no contrast."""
    return lambda x, t: torch.full_like(x, 0.3), Flow()


def large():
    model = Gaussian()
    model.shape = (3, 32, 32)
    return model, EDM()


def slow():
    return Gaussian(seconds=0.01), EDM()


def failing():
    return Failing(), EDM()


def nothing():
    return Gaussian()


def features(images):
    return torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1)


def brightness(images, seeds):
    assert len(images) == len(seeds)
    return images.double().mean((1, 2, 3))
