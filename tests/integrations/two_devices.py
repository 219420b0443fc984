"""One of two processes that share a tiny Flux, each with half of the tokens: two_devices.py RANK FILE.

`FILE` is where they meet. It prints the share of the tokens and the error. diffusers divides by the number of
accelerators, so that on a CPU it is told of one.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxPipeline

sys.path[:0] = [str(Path(__file__).parent)]
from pipelines import flux_parts, pooled, prompts  # noqa: E402, its folder has to be known first

from fewstep.integrations.diffusers import EVODiffScheduler  # noqa: E402


def main(rank, meeting):
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{meeting}")
    pipe = FluxPipeline(**flux_parts())
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, use_focused_sigmas=True)
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": prompts()["prompt_embeds"], **pooled(), "height": 16, "width": 16, "guidance_scale": 1.0}

    def latents():
        generator = torch.Generator().manual_seed(0)
        return pipe(**given, num_inference_steps=6, generator=generator, output_type="latent").images

    alone = latents()
    pipe.transformer.set_attention_backend("native")
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    seen = []
    pipe.transformer.proj_out.register_forward_hook(lambda layer, given, output: seen.append(given[0].shape[1]))
    shared = latents()
    print(seen[0] / alone.shape[1], float((shared - alone).norm() / alone.norm()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
