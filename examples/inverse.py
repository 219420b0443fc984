"""An inverse problem: images of 32 pixels a side from 8, on the packaged model. Seconds on a CPU.

The denoiser is told what was seen, by the gradient of how well its answer explains that (Song et al., "Pseudoinverse-
guided diffusion models for inverse problems", 2023). It still is a denoiser, which is all that a solver needs.
`python examples/inverse.py`
"""

import torch
from torch.nn.functional import avg_pool2d, interpolate

from fewstep import sample, unit_noise
from fewstep.adapters import load_model
from fewstep.bench.metrics import rmse
from fewstep.pictures import pixels, png, sheet

CAR = 1
BLOCK = 4  # pixels a side that were averaged
SPREAD = 0.5  # standard deviation of what was seen


def main(out: str = "inverse.png", seeds: range = range(4), calls: int = 10) -> tuple[float, float]:
    model = load_model()
    cars = model.conditioned(CAR)
    noise = unit_noise(seeds, model.shape)
    truth = sample(cars, noise, nfe=calls)  # the images that are to be found again
    seen = avg_pool2d(truth, BLOCK)

    def informed(x: torch.Tensor, t: float) -> torch.Tensor:
        sigma = model.schedule.node(t).sigma
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            answer = cars(x, t)
            coarse = avg_pool2d(answer, BLOCK)
            (pull,) = torch.autograd.grad(((seen - coarse).detach() * coarse).sum(), x)
        blurred = sigma / BLOCK  # that of means of so many pixels
        uncertain = blurred**2 * SPREAD**2 / (blurred**2 + SPREAD**2)  # the variance of what was seen, once x is known
        return (answer + sigma**2 / uncertain * pull).detach()

    other = unit_noise([seed + 1000 for seed in seeds], model.shape)
    found = sample(informed, other, nfe=calls, schedule=model.schedule)
    error, unaware = (rmse(avg_pool2d(each, BLOCK), seen) for each in (found, sample(cars, other, nfe=calls)))
    shown = pixels(torch.cat([truth, interpolate(seen, scale_factor=BLOCK), found]))
    with open(out, "wb") as file:
        file.write(png(sheet(shown, columns=len(truth))))
    print(f"{out}: truth, what was seen, what was found; error in what was seen {error:.3f}, without it {unaware:.3f}")
    return error, unaware


if __name__ == "__main__":
    main()
