"""Rows of a table: a small score model of four columns, and how few calls its samples need. Seconds on a CPU.

The columns are age, years at work, the logarithm of pay and weekly hours, made up here: pay goes with both years, and
one person in four works half days. `python examples/tabular.py`
"""

import torch

from fewstep import EDM, as_denoiser, sample, unit_noise

NAMES = ("age", "years", "log pay", "hours")


def table(n: int) -> torch.Tensor:
    age = 20 + 45 * torch.rand(n)
    years = (age - 20) * torch.rand(n)
    half = torch.rand(n) < 0.25
    hours = torch.where(half, 20 + 2 * torch.randn(n), 39 + 2 * torch.randn(n))
    pay = 7 + 0.01 * age + 0.03 * years - 0.5 * half + 0.2 * torch.randn(n)
    return torch.stack([age, years, pay, hours], 1)


def main(steps: int = 3000) -> dict[int, float]:
    torch.manual_seed(0)
    rows = table(4000)
    mean, std = rows.mean(0), rows.std(0)
    data = (rows - mean) / std  # columns of one scale, as the schedule is told by data_std
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Linear(128, 4)
    )

    def denoised(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """EDM's preconditioning, for data of standard deviation 1."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x)).reshape(-1, 1)
        scale = (1 + sigma**2).sqrt()
        return x / scale**2 + sigma / scale * network(torch.cat([x / scale, sigma.log() / 4], 1))

    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        x0, sigma = data[torch.randint(len(data), (256,))], torch.exp(1.3 * torch.randn(256) - 0.5)
        error = denoised(x0 + sigma[:, None] * torch.randn_like(x0), sigma) - x0
        loss = ((1 + sigma[:, None] ** -2) * error.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    denoiser = as_denoiser(denoised, "sample", EDM(sigma_min=0.02, sigma_max=20.0, data_std=1.0))
    noise = unit_noise(range(4000), (4,))
    found = {}
    for calls in (5, 8, 50):
        drawn = sample(denoiser, noise, nfe=calls) * std + mean
        found[calls] = (torch.corrcoef(drawn.T) - torch.corrcoef(rows.T)).abs().max().item()
        half = (drawn[:, 3] < 30).double().mean().item()
        print(f"{calls:3} calls: {half:.0%} work half days; correlations are right to {found[calls]:.2f}")
    return found


if __name__ == "__main__":
    main()
