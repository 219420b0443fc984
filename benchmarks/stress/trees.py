"""Denoisers of gradient-boosted trees: piecewise constant, in 1 to 4 dimensions, of treeffuser on small real data.

Beltran-Velez et al., Treeffuser: Probabilistic Predictions via Conditional Diffusions with Gradient-Boosted Trees
(2024). A model for each coordinate is told the noisy y, what is known x, and the time, and predicts minus the noise,
under VE with sigma(t)^2 = 0.01^2 (2000^(2 t) - 1). Needs treeffuser 0.2.0, which is no part of any extra, for it holds
numpy below 2: pip install treeffuser==0.2.0 into an environment of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.schedule import EDM, Node

__all__ = ["DATA", "SCHEDULE", "Trees"]

LEAST, MOST = 0.01, 20.0  # the package's defaults for data of unit variance
SCHEDULE = EDM(LEAST, MOST)


def _measured(data: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first measurements, and the class that is known."""
    return data.data[:, :count], data.target[:, None]


def _target(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """What is to be predicted, and the measurements that are known."""
    return data.target[:, None], data.data


# Data sets of scikit-learn, for developing and for reporting, and what is drawn of them.
DATA: Mapping[str, Mapping[str, tuple[str, Callable[[Any], tuple[np.ndarray, np.ndarray]]]]] = {
    "dev": {
        "diabetes": ("load_diabetes", _target),
        "iris": ("load_iris", lambda data: _measured(data, 4)),
    },
    "report": {
        "breast cancer": ("load_breast_cancer", lambda data: _measured(data, 2)),
        "wine": ("load_wine", lambda data: _measured(data, 3)),
    },
}


@dataclass(frozen=True)
class Trees:
    """A model for each coordinate, as LightGBM writes them, and what is known of each sample (B, k)."""

    models: tuple[str, ...]
    known: Tensor

    @classmethod
    def fitted(cls, split: str, name: str, samples: int) -> Trees:
        """To a data set, both sides of unit variance; sample i knows what row i of it does, over and over."""
        try:
            from sklearn import datasets
            from treeffuser import Treeffuser
        except ImportError as error:
            raise ImportError("boosted trees need treeffuser: pip install treeffuser==0.2.0") from error
        load, parts = DATA[split][name]
        y, x = ((part - part.mean(0)) / part.std(0) for part in parts(getattr(datasets, load)()))
        fit = Treeffuser(seed=0, n_jobs=1, extra_lightgbm_params={"deterministic": True})
        fit.fit(x, y)
        models = tuple(model.booster_.model_to_string() for model in fit.score_model.models)
        rows = np.random.default_rng(0).permutation(len(x))[np.arange(samples) % len(x)]
        return cls(models, torch.from_numpy(x[rows]))

    def of(self, samples: Iterable[int]) -> Trees:
        """The same for these samples."""
        return replace(self, known=self.known[[i % len(self.known) for i in samples]])

    @cached_property
    def _boosters(self) -> list[Any]:
        from lightgbm import Booster

        return [Booster(model_str=model) for model in self.models]

    def denoised(self, x: Tensor, node: Node) -> Tensor:
        time = math.log(math.hypot(node.nsr, LEAST) / LEAST) / math.log(MOST / LEAST)
        y = x / node.alpha
        seen = torch.cat([y, self.known, torch.full_like(y[:, :1], time)], 1).numpy()
        noise = -np.stack([booster.predict(seen, num_threads=1) for booster in self._boosters], 1)
        return y - node.nsr * torch.from_numpy(noise)
