"""An inverse problem: images of 32 pixels a side from 8, on the packaged model. Ten seconds on a CPU.

The denoiser is told what was seen (docs/restore.md). It still is a denoiser, which is all that a solver needs.
`python examples/inverse.py`
"""

import torch
from torch.nn.functional import interpolate

from fewstep import restore, sample, unit_noise
from fewstep.adapters import load_model
from fewstep.bench.metrics import rmse
from fewstep.pictures import pixels, png, sheet

CAR = 1
BLOCK = 4  # pixels a side that are averaged
ROUNDING = 1 / 255  # of what is seen


def main(out: str = "inverse.png", seeds: range = range(4), calls: int = 10) -> tuple[float, float]:
    model = load_model()
    cars = model.conditioned(CAR)
    truth = sample(cars, unit_noise(seeds, model.shape), nfe=calls)  # the images that are to be found again
    camera = restore.superresolution(BLOCK, model.shape)
    seen = camera.A(truth)

    informed = restore.posterior(cars, camera, seen, noise=ROUNDING)
    other = unit_noise([seed + 1000 for seed in seeds], model.shape)
    found, unaware = (sample(denoiser, other, nfe=calls) for denoiser in (informed, cars))

    errors = rmse(camera.A(found), seen), rmse(camera.A(unaware), seen)
    shown = pixels(torch.cat([truth, interpolate(seen, scale_factor=BLOCK), found]))
    with open(out, "wb") as file:
        file.write(png(sheet(shown, columns=len(truth))))
    print(f"{out}: truth, what was seen, what was found; error in what was seen {errors[0]:.3f}, else {errors[1]:.3f}")
    return errors


if __name__ == "__main__":
    main()
