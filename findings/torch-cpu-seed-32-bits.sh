#!/bin/sh
# torch 2.13.0: a generator on the CPU looks at the low 32 bits of its seed alone.
#
# manual_seed takes any integer of 64 bits, and initial_seed() gives all of them back, but 5, 5 + 2^32 and 5 + 2^62 draw
# the same numbers. Of the random 64-bit seeds that user interfaces make, two in 4 billion are one image, and a hash
# that is cut to the high bits is one image for everybody.
#
# Seen on 2026-11-29 (Python 3.11, torch 2.13.0), the first number of randn:
#     5 -0.4868, 5 + 2^32 -0.4868, 5 + 2^62 -0.4868, 6 differs
#
# Needs a Python with torch 2.13.0 (PYTHON=...). Fails if the release behaves otherwise.
set -eu
python=${PYTHON:-python3}
"$python" - <<'PY'
import torch

assert torch.__version__.startswith("2.13.0"), f"this was seen in torch 2.13.0; got {torch.__version__}"


def first(seed):
    generator = torch.Generator("cpu").manual_seed(seed)
    assert generator.initial_seed() == seed
    return torch.randn(1, generator=generator).item()


found = {seed: first(seed) for seed in (5, 5 + 2**32, 5 + 2**62, 6)}
for seed, value in found.items():
    print(f"{seed:20} {value:.4f}")
assert found[5] == found[5 + 2**32] == found[5 + 2**62], "higher bits count now"
assert found[6] != found[5]
PY
echo "as described"
