"""A model of your own in 30 lines: flow matching of a spiral, and what few calls make of it. Seconds on a CPU.

`python examples/own_model.py`
"""

import torch

from fewstep import DDIM, EVODiff, Flow, as_denoiser, sample, unit_noise


def spiral(n: int) -> torch.Tensor:
    angle = 1.5 + 3.5 * torch.rand(n, 1)
    return 0.25 * angle * torch.cat([angle.cos(), angle.sin()], 1) + 0.03 * torch.randn(n, 2)


def main(steps: int = 3000) -> dict[str, float]:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 96), torch.nn.SiLU(), torch.nn.Linear(96, 96), torch.nn.SiLU(), torch.nn.Linear(96, 2)]
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):  # the network's time is 0 at the noise and 1 at the data, as in torchcfm
        x0, noise, t = spiral(256), torch.randn(256, 2), torch.rand(256, 1)
        loss = (network(torch.cat([t * x0 + (1 - t) * noise, t], 1)) - (x0 - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def velocity(x, t):  # t is a float
        return network(torch.cat([x, torch.full((len(x), 1), t)], 1))

    denoiser = as_denoiser(velocity, "flow_prediction", Flow(), data_at=1)
    noise = unit_noise(range(500), (2,))
    exact = sample(denoiser, noise, nfe=100)
    runs = {"EVODiff(), 8 calls": EVODiff(), "Euler, 8 calls": DDIM()}
    errors = {name: _rmse(sample(denoiser, noise, nfe=8, solver=solver), exact) for name, solver in runs.items()}
    for name, error in errors.items():
        print(f"{name}: error {error:.3f} to the same noise in 100 calls")
    return errors


def _rmse(x: torch.Tensor, exact: torch.Tensor) -> float:
    return (x - exact).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
