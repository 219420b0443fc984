#!/bin/sh
# torchao 0.18.0: a state dict with a parameter of the module itself cannot be read back from safetensors.
#
# flatten_tensor_state_dict takes the names of a state dict as they are; unflatten_tensor_state_dict splits each at its
# last dot and has none where the parameter belongs to the outermost module. Of diffusers' transformers these are
# the `scale_shift_table` of PixArt, Sana, Wan and LTX; what was saved has no documented way back. The quantised tensors
# flattened alone come back with equal bits.
#
# Seen on 2026-11-29 (Python 3.11, torch 2.13.0):
#     as documented     ValueError: not enough values to unpack (expected 2, got 1)
#     quantised alone   equal bits
#
# Needs a Python with torch (PYTHON=...). Fails if the release behaves otherwise.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work" torchao==0.18.0 safetensors==0.8.0
PYTHONPATH="$work" "$python" - "$work" <<'PY' 2>/dev/null
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import Int8WeightOnlyConfig, quantize_


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.ones(2, 32))
        self.proj = nn.Linear(32, 32)


torch.manual_seed(0)
net = Net()
quantize_(net, Int8WeightOnlyConfig())
state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
path = f"{sys.argv[1]}/net.safetensors"


def there_and_back(part):
    tensors, metadata = flatten_tensor_state_dict(part)
    save_file(tensors, path, metadata)
    with safe_open(path, framework="pt") as file:
        return unflatten_tensor_state_dict({name: file.get_tensor(name) for name in file.keys()}, file.metadata())[0]


try:
    there_and_back(state)
    raise SystemExit("the release reads it back now")
except ValueError as error:
    print(f"as documented     ValueError: {error}")
small = {"proj.weight": state["proj.weight"]}
back = there_and_back(small)["proj.weight"]
assert torch.equal(back.qdata, small["proj.weight"].qdata) and torch.equal(back.scale, small["proj.weight"].scale)
print("quantised alone   equal bits")
PY
echo "as described"
