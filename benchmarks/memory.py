"""What a run needs of memory, beside diffusers' own pipeline on the same folder: each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .command import Out, say, write

__all__ = ["measure", "networks", "page", "save_model", "save_network"]

BATCHES = (1, 8)
STEPS = 4
ROUNDS = 5
GUIDANCE = 7.5
POLL = 0.001  # seconds
WIDTH, LENGTH = 256, 77  # of the text
SMALL = "small"  # the folder of a small network in that of a large one
KINDS = {"diffusers, UniPC": "theirs", "fewstep": "ours"}


def save_model(folder: Path, channels: tuple[int, ...] = (96, 192, 384), side: int = 32) -> Path:
    """An untrained model like Stable Diffusion, smaller: UNet with text, autoencoder, text encoder."""
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel(
        sample_size=side, block_out_channels=channels, layers_per_block=1, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64, 64), latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    characters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters)]
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=LENGTH)
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=autoencoder, unet=unet, text_encoder=transformers.CLIPTextModel(text), tokenizer=tokenizer,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def save_network(folder: Path, channels: int = 128) -> Path:
    """An untrained network of EDM, that of its CIFAR-10 files, as `fewstep convert` leaves it."""
    from fewstep.adapters.research.folder import NETWORK, read_fields, write_folder
    from fewstep.adapters.research.networks.edm import EDMUNet, UNetConfig

    config = {"model_type": "SongUNet", "img_resolution": 32, "in_channels": 3, "out_channels": 3}
    config |= {"model_channels": channels, "channel_mult": [2, 2, 2]}
    network = EDMUNet(read_fields(UNetConfig, config, "network"))
    for each in network.parameters():
        torch.nn.init.normal_(each, std=0.02)
    write_folder(folder, {"family": "edm", "network": config}, {NETWORK: network.state_dict()})
    return folder


def held() -> int:
    """Bytes of this process that are no file's: what was read of weights by mapping does not count twice."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def peak(work: Callable[[], object]) -> int:
    """The most that is held while it works."""
    found, done = [held()], threading.Event()

    def watch() -> None:
        while not done.is_set():
            found.append(held())
            time.sleep(POLL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max([*found, held()])


def loading(folder: Path, dtype: str) -> None:
    """Print bytes beyond what imports hold, of loading a network and of holding it."""
    from fewstep.adapters import load_model

    load_model(folder / SMALL)  # what that imports is nobody's
    before, kept = held(), dict[str, Any]()
    most = peak(lambda: kept.update(model=load_model(folder, dtype=getattr(torch, dtype)))) - before
    print(json.dumps({"loading": most, "loaded": held() - before}))


def one(kind: str, folder: Path, batch: int) -> None:
    """Measure in this process, and print: bytes beyond what imports hold, of loading and of a run with its images."""
    import accelerate  # noqa: F401, whose memory is nobody's
    import transformers  # noqa: F401
    from diffusers import StableDiffusionPipeline

    import fewstep
    from fewstep.adapters import asking, load_model, pipeline_folder, pipelines  # noqa: F401

    prompts, kept = ["a horse"] * batch, {}
    if kind == "theirs":

        def load() -> None:
            kept["pipe"] = StableDiffusionPipeline.from_pretrained(folder)
            kept["pipe"].set_progress_bar_config(disable=True)

        def run() -> None:
            noise = fewstep.unit_noise(range(batch), (4, *[kept["pipe"].unet.config.sample_size] * 2))
            kept["pipe"](prompts, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
    else:

        def load() -> None:
            kept["model"] = load_model(folder)

        def run() -> None:
            model = kept["model"]
            noise = fewstep.unit_noise(range(batch), model.shape)
            denoiser = model.prompted(prompts, GUIDANCE)
            model.decode(fewstep.sample(denoiser, x=noise, nfe=STEPS, grid=model.grid))

    before = held()
    loading = peak(load) - before
    print(json.dumps({"loading": loading, "loaded": held() - before, "run": peak(run) - before}))


def measure(folder: Path, batch: int, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Medians of each kind's bytes, in turn."""
    found: dict[str, list[dict[str, int]]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, kind in KINDS.items():
            found[name].append(apart("--one", kind, "--folder", str(folder), "--batch", str(batch)))
    return {
        name: {key: statistics.median(each[key] for each in all_) for key in all_[0]} for name, all_ in found.items()
    }


def apart(*arguments: str) -> dict[str, int]:
    """What this program prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, int] = json.loads(told.splitlines()[-1])
    return found


def networks() -> str:
    """Of loading a network of research code."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_network(Path(temporary))
        save_network(folder / SMALL, channels=16)
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        rows = []
        for dtype, share in (("float32", 1.0), ("bfloat16", 0.5)):
            found = apart("--one", dtype, "--folder", str(folder))
            numbers = (f"{each / 2**20:,.0f}" for each in (weights * share, found["loading"], found["loaded"]))
            rows.append(f"| {dtype} | {' | '.join(numbers)} |")
    return f"""A folder that `fewstep convert` made, of EDM's network for CIFAR-10:

| | weights | loading | loaded |
|---|---|---|---|
{chr(10).join(rows)}

"""


def page() -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_model(Path(temporary))
        weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        rows = []
        for batch in BATCHES:
            say(f"batch {batch}")
            found = measure(folder, batch)
            base = next(iter(found.values()))["run"]
            for name, of in found.items():
                numbers = (f"{of[key] / 2**20:,.0f}" for key in ("loading", "loaded", "run"))
                rows.append(f"| {batch} | {name} | {' | '.join(numbers)} | {of['run'] / base:.2f} |")
    return f"""# Memory

For people whose model hardly fits. You get what a run needs beside diffusers' own pipeline: the same.

Written by `make memory`: a random model like Stable Diffusion, smaller ({weights / 2**20:,.0f} MiB of
weights), {STEPS} calls with guidance and the decoding of the images, on a CPU. MiB that the process holds beyond its
imports, the mapped files of the weights apart; medians of {ROUNDS} processes. "Loading" is the most while the folder is
loaded, and shows that no copy of the weights is made. Single runs of batch 1 scatter by a third, of either kind.

| batch | | loading | loaded | peak of the run | of diffusers' |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{networks()}[Models of others](checkpoints.md) says how to need less: `dtype=torch.bfloat16`, `batch=1`.
"""


def main(
    out: Out = None,
    one_: Annotated[str, typer.Option("--one", hidden=True)] = "",
    folder: Path = Path(),
    batch: int = 1,
) -> None:
    """Measure the memory of a run beside diffusers' own pipeline, and write docs/memory.md."""
    torch.set_num_threads(1)
    if one_ in ("float32", "bfloat16"):
        loading(folder, one_)
    elif one_:
        one(one_, folder, batch)
    else:
        write(out, page)


if __name__ == "__main__":
    typer.run(main)
