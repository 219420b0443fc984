"""A real ComfyUI on the CPU, driven by HTTP: what tests/integrations/test_comfy_real.py starts."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import safetensors.torch

ROOT = Path(__file__).parents[2]
STARTS, RUNS = 300, 300  # seconds, on a slow machine
# Another pack that adds a sampler as such packs do, and reloads the module of samplers after it.
OTHER_PACK = """
import importlib
import comfy.samplers
from comfy.samplers import KSampler, SchedulerHandler, SCHEDULER_HANDLERS, SCHEDULER_NAMES, k_diffusion_sampling
KSampler.SAMPLERS.insert(KSampler.SAMPLERS.index("uni_pc_bh2") + 1, "theirs")
k_diffusion_sampling.sample_theirs = k_diffusion_sampling.sample_euler
importlib.reload(k_diffusion_sampling)
SCHEDULER_HANDLERS["theirs"] = SchedulerHandler(comfy.samplers.simple_scheduler)
SCHEDULER_NAMES.append("theirs")
NODE_CLASS_MAPPINGS = {}
"""


class Refused(Exception):
    """What ComfyUI says of a prompt that it cannot run, or that failed."""


class ComfyServer:
    """`sources` is a checkout of ComfyUI, `python` one with what it requires, `base` an empty folder."""

    def __init__(self, sources, python, base):
        self.base, self.client = base, uuid.uuid4().hex
        nodes = base / "custom_nodes"
        nodes.mkdir(parents=True)
        (nodes / "a_pack.py").write_text(OTHER_PACK)
        (nodes / "fewstep").symlink_to(ROOT)
        (nodes / "exact.py").write_text((ROOT / "benchmarks" / "comfy_exact.py").read_text())
        (nodes / "z_pack.py").write_text(OTHER_PACK.replace("theirs", "others"))
        for name in ("models", "input", "output", "temp", "user"):
            (base / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = ["--cpu", "--port", str(self.port), "--base-directory", base, "--preview-method", "latent2rgb"]
        options += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = base / "log.txt"
        with self.log.open("w") as log:
            command = [python, "main.py", *map(str, options)]
            self.process = subprocess.Popen(command, cwd=sources, env=environment, stdout=log, stderr=log)
        for _ in range(STARTS):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                self.get("/system_stats")
                return
            if self.process.poll() is not None:
                break
            time.sleep(1)
        self.close()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")

    def close(self):
        self.process.terminate()
        self.process.wait(30)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.read()

    def post(self, path, data):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(data).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error

    def queue(self, graph):
        return json.loads(self.post("/prompt", {"prompt": graph, "client_id": self.client}))["prompt_id"]

    def outcome(self, prompt_id):
        for _ in range(RUNS * 20):
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise Refused(f"no answer within {RUNS} s")

    def run(self, graph):
        """The latent that the prompt's SaveLatent holds, in the model's units."""
        done = self.outcome(self.queue(graph))
        if done["status"]["status_str"] != "success":
            raise Refused(json.dumps(done["status"]["messages"][-1]))
        (saved,) = [each for output in done["outputs"].values() for each in output.get("latents", [])]
        path = self.base / "output" / saved["subfolder"] / saved["filename"]
        return safetensors.torch.load_file(path)["latent_tensor"] * 0.18215


def python():
    return os.environ.get("COMFYUI_PYTHON", sys.executable)
