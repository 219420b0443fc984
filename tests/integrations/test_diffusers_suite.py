"""diffusers' own tests of schedulers, on ours: DIFFUSERS_SRC=/path/to/a/checkout/of/diffusers pytest tests/integrations

The tests of its UniPC, that is, with those of every scheduler, which they inherit, less those that compare with numbers
that UniPC gave.
"""

import importlib.util
import os
import re
import sys
import types
import unittest
from pathlib import Path

import pytest

SOURCE = os.environ.get("DIFFUSERS_SRC")
if not SOURCE:
    pytest.skip("set DIFFUSERS_SRC to a checkout of diffusers", allow_module_level=True)

from diffusers.utils.testing_utils import CaptureLogger  # noqa: E402

from fewstep.integrations.diffusers import EVODiffScheduler  # noqa: E402

ROOT = "diffusers_own_tests"
SOLVER_OF_ORDER = {1: "ddim", 2: "evodiff", 3: "unipc-3"}
# Numbers that UniPC gave, and a walk through classes that starts and ends at UniPC's.
NUMBERS_OF_UNIPC = {
    "test_switch",
    "test_full_loop_no_noise",
    "test_full_loop_with_karras",
    "test_full_loop_with_v_prediction",
}
NUMBERS_OF_UNIPC |= {"test_full_loop_with_karras_and_v_prediction", "test_full_loop_with_noise"}
if not importlib.util.find_spec("torchsde"):
    NUMBERS_OF_UNIPC.add("test_compatibles")  # makes one scheduler of each class


def module(name, **contents):
    found = types.ModuleType(f"{ROOT}{name}")
    found.__dict__.update(contents, __path__=[])
    sys.modules[found.__name__] = found


def load(name):
    path = Path(SOURCE, "tests", "schedulers", f"{name}.py")
    found = types.ModuleType(f"{ROOT}.schedulers.{name}")
    found.__package__ = f"{ROOT}.schedulers"
    sys.modules[found.__name__] = found
    # How many numbers it puts where UniPC keeps its history; ours is elsewhere.
    text = re.sub(r"\w+\.config\.solver_order", "2", path.read_text())
    exec(compile(text, path, "exec"), found.__dict__)
    return found


for package in ("", ".schedulers", ".others"):
    module(package)
module(".others.test_utils", TOKEN="", USER="", is_staging_test=unittest.skip("uploads"))
module(".testing_utils", CaptureLogger=CaptureLogger, torch_device="cpu")
load("test_schedulers")
unipc = load("test_scheduler_unipc")


def suite(of):
    def get_scheduler_config(self, **changes):
        config = of.get_scheduler_config(self, **changes)
        config.pop("solver_type")
        config["solver"] = SOLVER_OF_ORDER[config.pop("solver_order")]
        if config.get("use_flow_sigmas"):
            config["prediction_type"] = "flow_prediction"  # epsilon says nothing at a flow's start
        return config

    not_ours = dict.fromkeys(NUMBERS_OF_UNIPC & set(dir(of)))
    contents = {"scheduler_classes": (EVODiffScheduler,), "get_scheduler_config": get_scheduler_config, **not_ours}
    return type(f"Test{of.__name__}", (of,), contents)


TestUniPC = suite(unipc.UniPCMultistepSchedulerTest)
TestUniPC1D = suite(unipc.UniPCMultistepScheduler1DTest)
