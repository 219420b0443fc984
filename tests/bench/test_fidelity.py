"""torch-fidelity's metrics, with a stand-in for Inception, whose weights are not here."""

from functools import partial

import numpy as np
import pytest
import torch

import fakes
from fewstep.bench.draw import Worker, cells_of, draw, shards_of
from fewstep.bench.extractors import Extractor, Reference, fidelity_network
from fewstep.bench.measure import Judge
from fewstep.bench.metrics import Moments
from fewstep.bench.plan import Plan

fidelity = pytest.importorskip("torch_fidelity", reason="needs the extra fidelity")


class StandIn(fidelity.FeatureExtractorBase):
    """The pixels pooled, where Inception has 2048 features, and as many logits."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "2048", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits_unbiased" if metric == "isc" else "2048"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return tuple(fakes.features(images) for _ in self.features_list)


fidelity.register_feature_extractor("stand-in", StandIn)


class Rows(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


IMAGES = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_rows_have_its_metrics(tmp_path, monkeypatch):
    from fewstep.bench import fidelity as ours
    from fewstep.bench import measure

    plan = Plan.of({"models": ["fakes:gaussian"], "solvers": ["ddim"], "calls": 2, "n": 30, "batch": 8, "converged": 0,
                    "metrics": ["frechet", "isc", "kid", "precision", "recall"], "extractor": "inception"})  # fmt: skip
    draw(plan, tmp_path, Worker())
    network = fidelity_network("stand-in", "", "cpu")
    extractor = Extractor("FID", "stand-in", lambda images: network(images)[0])
    reference = Reference("uniform noise", Moments.of(fakes.features(IMAGES)), IMAGES)
    monkeypatch.setattr(measure, "load_extractor", lambda *_: extractor)
    monkeypatch.setattr(measure, "load_reference", lambda *_: reference)
    monkeypatch.setattr(ours, "measures", partial(ours.measures, extractor="stand-in"))
    shards = shards_of(plan, tmp_path, next(iter(cells_of(plan))))
    got = Judge(plan, "cpu").figures(shards)

    images = torch.from_numpy(np.concatenate([batch["images"] for _, batch in shards.read()])).permute(0, 3, 1, 2)
    expected = fidelity.calculate_metrics(
        input1=Rows(images), input2=Rows(IMAGES), fid=True, isc=True, kid=True, prc=True, cuda=False, verbose=False,
        feature_extractor="stand-in", kid_subset_size=30, save_cpu_ram=True,
    )  # fmt: skip
    assert got["frechet"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert got["isc"] == expected["inception_score_mean"]
    assert got["kid"] == expected["kernel_inception_distance_mean"]
    assert (got["precision"], got["recall"]) == (expected["precision"], expected["recall"])


def test_what_the_metrics_need_is_told():
    plan = Plan.of({"models": ["fakes:gaussian"], "metrics": ["isc"], "extractor": "fakes:features"})
    with pytest.raises(ValueError, match="isc are of Inception: set extractor = 'inception'"):
        Judge(plan, "cpu")
