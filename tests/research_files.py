"""Small networks of research code, of weights by a formula, in files as their authors write them."""

import json
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from fewstep.adapters.research.folder import read_fields
from fewstep.adapters.research.networks.adm import ADMClassifier, ADMConfig, ADMUNet, ClassifierConfig
from fewstep.adapters.research.networks.edm import EDMUNet, UNetConfig
from fewstep.adapters.research.networks.score_sde import NCSNpp, NCSNppConfig
from formula import fill

SIDE = 8
SONG = {
    "img_resolution": SIDE, "in_channels": 3, "out_channels": 3, "label_dim": 3, "augment_dim": 9, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "embedding_type": "fourier",
    "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
DHARIWAL = {
    "img_resolution": SIDE, "in_channels": 3, "out_channels": 3, "label_dim": 3, "model_channels": 64,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip
ADM = {
    "image_size": SIDE, "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2], "num_classes": 3,
    "attention_resolutions": [4], "num_head_channels": 16, "learn_sigma": True, "resblock_updown": True,
}  # fmt: skip
CLASSIFIER = {
    "image_size": SIDE, "width": 32, "depth": 1, "channel_mult": [1, 2], "attention_resolutions": [4],
    "num_head_channels": 32, "num_classes": 3,
}  # fmt: skip
VP = {"image_size": SIDE, "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "num_scales": 10}
VE = VP | {
    "fir": True, "progressive_input": "residual", "embedding_type": "fourier", "scale_by_sigma": True,
    "centered": False,
}  # fmt: skip


def edm_network(arguments=SONG, model_type="SongUNet"):
    return fill(EDMUNet(read_fields(UNetConfig, {"model_type": model_type, **arguments}, "test"))).eval()


def adm_network(arguments=ADM):
    return fill(ADMUNet(read_fields(ADMConfig, arguments, "test"))).eval()


def classifier_network():
    return fill(ADMClassifier(read_fields(ClassifierConfig, CLASSIFIER, "test"))).eval()


def score_network(arguments=VP):
    return fill(NCSNpp(read_fields(NCSNppConfig, arguments, "test"))).eval()


# EDM: pickles of modules that carry the source code of their classes


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the authors' loader is not there")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """An object that is pickled as torch_utils.persistence pickles it."""

    # What their loader would execute.
    SOURCE = "raise SystemExit('executed')"

    def __init__(self, name, **state):
        self.name, self.state = name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": self.SOURCE, "class_name": self.name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,), None


def _plain(kind, state):
    """One of torch's own modules."""
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


def _tree(module, name):
    state = {
        "training": False, "_parameters": OrderedDict(module._parameters), "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(), "skip_scale": np.sqrt(0.5),
        "_modules": OrderedDict((key, _tree(each, type(each).__name__)) for key, each in module._modules.items()),
    }  # fmt: skip
    return _plain(nn.ModuleDict, state) if isinstance(module, nn.ModuleDict) else Persistent(name, **state)


def edm_pickle(path, arguments=SONG, model_type="SongUNet", precond="EDMPrecond", content=None, **told):
    """A network as EDM's training loop writes it."""
    inner = _tree(edm_network(arguments, model_type), model_type)
    inner.state["_init_kwargs"] = dict(arguments)
    told = {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf"), **told}
    outer = Persistent(precond, _parameters=OrderedDict(), _buffers=OrderedDict(), _modules={"model": inner}, **told)
    whole = {"ema": outer, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "augment_pipe": None, "dataset_kwargs": {}}
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module}
    try:
        path.write_bytes(pickle.dumps(content or whole))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
    return path


# ADM: state dicts, and our configuration


def adm_files(folder, **changes):
    """(network, classifier, configuration) as files."""
    network, classifier, config = folder / "network.pt", folder / "classifier.pt", folder / "adm.json"
    torch.save(adm_network(ADM | changes).state_dict(), network)
    torch.save(classifier_network().state_dict(), classifier)
    config.write_text(json.dumps({"network": ADM | changes, "classifier": CLASSIFIER}))
    return network, classifier, config


# ScoreSDE: checkpoints of training


def score_sde_files(folder, arguments=VP, sde="vpsde", factor=2.0):
    """(checkpoint, configuration) as files; the averages are by the formula, the weights `factor` times these."""
    path, config = folder / "checkpoint_8.pth", folder / "score.json"
    network = score_network(arguments)
    weights = {f"module.{name}": each.clone() for name, each in network.state_dict().items()}
    shadows = [each.detach().clone() for each in network.parameters() if each.requires_grad]
    for name, each in weights.items():
        if not name.endswith(("sigmas", "all_modules.0.W")):
            each.mul_(factor)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(3))])
    torch.save(
        {
            "optimizer": optimizer.state_dict(), "model": weights, "step": 100,
            "ema": {"decay": 0.999, "num_updates": 100, "shadow_params": shadows},
        },
        path,
    )  # fmt: skip
    config.write_text(json.dumps({"sde": sde, "network": arguments}))
    return path, config
