"""A pipeline of diffusers with EVODiff in it: `python examples/pipeline.py`, offline, in a few seconds.

The pipeline is a DiT of a few thousand random weights, so its picture is coloured noise: what counts is that it runs.
With one of yours only the first two lines of `main` change.
"""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from fewstep.integrations.diffusers import EVODiffScheduler


def tiny_pipeline() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=16, in_channels=4, out_channels=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return DiTPipeline(transformer, vae, DDIMScheduler())


def main(out: str = "pipeline.png") -> None:
    pipe = tiny_pipeline()  # yours: DiffusionPipeline.from_pretrained("...")
    call = {"class_labels": [207, 360]}  # yours: {"prompt": "a horse in the snow"}
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config, use_focused_sigmas=True)
    images = pipe(**call, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).images
    images[0].save(out)
    print(f"{out}: {images[0].size[0]} x {images[0].size[1]} pixels, 8 steps of {type(pipe.scheduler).__name__}")


if __name__ == "__main__":
    main()
