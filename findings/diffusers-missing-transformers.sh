#!/bin/sh
# diffusers 0.42.1: without transformers, DiffusionPipeline.from_pretrained does not say that transformers is missing.
#
# StableDiffusionPipeline is then a stand-in whose metaclass names the missing package as soon as it is used. For names
# that begin with "_" it asks super().__getattr__, which `type` has not, and from_pretrained asks for such a name,
# `_get_signature_types`, before any other. So the way that model cards show ends in an AttributeError that names nothing,
# while the class's own from_pretrained names the package. Nothing but model_index.json is read until there.
#
# Seen on 2026-11-29 (Python 3.11, torch 2.13.0, no transformers):
#     DiffusionPipeline        AttributeError: 'super' object has no attribute '__getattr__'
#     StableDiffusionPipeline  ImportError: StableDiffusionPipeline requires the transformers library ...
#
# Makes an environment of its own, with PYTHON=... . Fails if the release behaves otherwise.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
cat >"$work/model_index.json" <<'JSON'
{
  "_class_name": "StableDiffusionPipeline",
  "_diffusers_version": "0.42.1",
  "feature_extractor": [null, null],
  "requires_safety_checker": false,
  "safety_checker": [null, null],
  "scheduler": ["diffusers", "DDIMScheduler"],
  "text_encoder": ["transformers", "CLIPTextModel"],
  "tokenizer": ["transformers", "CLIPTokenizer"],
  "unet": ["diffusers", "UNet2DConditionModel"],
  "vae": ["diffusers", "AutoencoderKL"]
}
JSON
HF_HUB_OFFLINE=1 "$work/env/bin/python" - "$work" <<'PY'
import importlib.util
import sys

import diffusers

assert importlib.util.find_spec("transformers") is None, "the environment has transformers"


def said(of):
    try:
        of.from_pretrained(sys.argv[1])
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{of.__name__:24} {text[:100]}")
        return text
    raise SystemExit("it loaded")


general, own = said(diffusers.DiffusionPipeline), said(diffusers.StableDiffusionPipeline)
assert general.startswith("AttributeError") and "transformers" not in general, "the general class names the package now"
assert own.startswith("ImportError") and "transformers" in own, "the class's own call does not name the package"
PY
