"""Tiny pipelines of diffusers with random weights, built from configs: nothing is downloaded."""

from functools import cache

import diffusers as df
import torch

TEXT = {"text_encoder": None, "tokenizer": None}


def seeded(build):
    """`build`, cached, with weights that its name decides."""

    @cache
    def built():
        torch.manual_seed(sum(map(ord, build.__name__)))
        return build()

    return built


def embeds(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(length=4, width=8):
    return {"prompt_embeds": embeds(1, length, width), "negative_prompt_embeds": embeds(1, length, width, seed=1)}


def vae(channels=4, **config):
    return df.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=channels, **config).eval()


def unet(**config):
    return df.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **{"cross_attention_dim": 8, **config},
    ).eval()  # fmt: skip


@seeded
def unconditional_unet():
    return df.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@seeded
def stable_diffusion_parts():
    scheduler = df.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    parts = {"unet": unet(), "vae": vae(), "scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    return {**parts, **TEXT, "requires_safety_checker": False}


@seeded
def controlnet():
    return df.ControlNetModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=2, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(2,),
    ).eval()  # fmt: skip


@seeded
def sdxl_parts():
    network = unet(
        cross_attention_dim=8, addition_embed_type="text_time", addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=8 + 6 * 2,
    )  # fmt: skip
    scheduler = df.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return {
        "unet": network, "vae": vae(), "scheduler": scheduler, "text_encoder_2": None, "tokenizer_2": None, **TEXT,
        "add_watermarker": False,
    }  # fmt: skip


@seeded
def dit():
    network = df.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=4, attention_head_dim=4, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return df.DiTPipeline(network.eval(), vae(), df.DDIMScheduler())


@seeded
def sd3_parts():
    network = df.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=8, pooled_projection_dim=8,
    )  # fmt: skip
    text = {f"{part}{n}": None for n in ("", "_2", "_3") for part in ("text_encoder", "tokenizer")}
    autoencoder = vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)
    scheduler = df.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return {"transformer": network.eval(), "vae": autoencoder, "scheduler": scheduler, **text}


@seeded
def flux_parts():
    network = df.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[2, 2, 4],
    )  # fmt: skip
    autoencoder = vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)
    scheduler = df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return {
        "transformer": network.eval(), "vae": autoencoder, "scheduler": scheduler,
        "text_encoder_2": None, "tokenizer_2": None, **TEXT,
    }  # fmt: skip


@seeded
def sana():
    network = df.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=8,
    )  # fmt: skip
    autoencoder = df.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"), decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    scheduler = df.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    return df.SanaPipeline(vae=autoencoder.eval(), transformer=network.eval(), scheduler=scheduler, **TEXT)


@seeded
def wan():
    network = df.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    autoencoder = df.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = df.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    return df.WanPipeline(vae=autoencoder.eval(), transformer=network.eval(), scheduler=scheduler, **TEXT)


@seeded
def pixart():
    network = df.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=8,
        in_channels=4, cross_attention_dim=8, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = df.DPMSolverMultistepScheduler(beta_schedule="linear")
    return df.PixArtSigmaPipeline(vae=vae(), transformer=network.eval(), scheduler=scheduler, **TEXT)


@seeded
def cogview4():
    network = df.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        text_embed_dim=8, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = df.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return df.CogView4Pipeline(vae=vae(), transformer=network.eval(), scheduler=scheduler, **TEXT)


@seeded
def ltx_with_conditions():
    network = df.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=8,
    )  # fmt: skip
    fours, twice = (4, 4, 4, 4), (True, True, False, False)
    autoencoder = df.AutoencoderKLLTXVideo(
        latent_channels=8, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
        block_out_channels=fours, layers_per_block=(1,) * 5, spatio_temporal_scaling=twice,
        decoder_block_out_channels=fours, decoder_layers_per_block=(1,) * 5, decoder_spatio_temporal_scaling=twice,
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
    )  # fmt: skip
    scheduler = df.FlowMatchEulerDiscreteScheduler()
    return df.LTXConditionPipeline(vae=autoencoder.eval(), transformer=network.eval(), scheduler=scheduler, **TEXT)


def masks(length=4):
    ones = torch.ones(1, length, dtype=torch.long)
    return {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}


def pooled():
    return {"pooled_prompt_embeds": embeds(1, 8), "negative_pooled_prompt_embeds": embeds(1, 8, seed=1)}


@cache
def pipeline(name):
    """A pipeline, with its own scheduler, and what it is called with beside steps, guidance and generator."""
    image = embeds(1, 3, 8, 8).sigmoid()
    small = {"height": 8, "width": 8, "output_type": "latent"}
    sd, xl = stable_diffusion_parts, sdxl_parts
    xl_call = {**prompts(), **pooled(), **small}
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    found = {
        "DDPM": lambda: (df.DDPMPipeline(unconditional_unet(), df.DDPMScheduler()), {"output_type": "np"}),
        "DDIM": lambda: (df.DDIMPipeline(unconditional_unet(), df.DDIMScheduler()), {"output_type": "np"}),
        "DiT": lambda: (dit(), {"class_labels": [1], "output_type": "np"}),
        "SD": lambda: (df.StableDiffusionPipeline(**sd()), {**prompts(), **small}),
        "SD img2img": lambda: (
            df.StableDiffusionImg2ImgPipeline(**sd()), {**prompts(), "image": image, "output_type": "latent"},
        ),
        "SD inpaint": lambda: (
            df.StableDiffusionInpaintPipeline(**sd()), {**prompts(), **small, "image": image, "mask_image": mask},
        ),
        "ControlNet": lambda: (
            df.StableDiffusionControlNetPipeline(**sd(), controlnet=controlnet()),
            {**prompts(), **small, "image": image},
        ),
        "SDXL": lambda: (df.StableDiffusionXLPipeline(**xl()), xl_call),
        "SDXL img2img": lambda: (
            df.StableDiffusionXLImg2ImgPipeline(**xl()),
            {**prompts(), **pooled(), "image": image, "output_type": "latent"},
        ),
        "SD3": lambda: (df.StableDiffusion3Pipeline(**sd3_parts()), {**prompts(), **pooled(), **small}),
        "SD3 img2img": lambda: (
            df.StableDiffusion3Img2ImgPipeline(**sd3_parts()),
            {**prompts(), **pooled(), "image": image, "output_type": "latent", "height": 8, "width": 8},
        ),
        "Flux": lambda: (df.FluxPipeline(**flux_parts()), {**prompts(), **pooled(), **small}),
        "Flux img2img": lambda: (
            df.FluxImg2ImgPipeline(**flux_parts()),
            {"prompt_embeds": embeds(1, 4, 8), "pooled_prompt_embeds": embeds(1, 8), **small, "image": image},
        ),
        "Sana": lambda: (
            sana(),
            {**prompts(), **masks(), **small, "height": 32, "width": 32, "negative_prompt": None,
             "use_resolution_binning": False},
        ),
        "Wan": lambda: (wan(), {**prompts(), "height": 16, "width": 16, "num_frames": 5, "output_type": "latent"}),
        "CogView4": lambda: (cogview4(), {**prompts(), **small, "height": 16, "width": 16}),
        "LTX with conditions": lambda: (
            ltx_with_conditions(),
            {**prompts(), **masks(), "height": 32, "width": 32, "num_frames": 9, "output_type": "latent",
             "image": image.repeat(1, 1, 4, 4)},
        ),
        "PixArt": lambda: (
            pixart(), {**prompts(), **masks(), **small, "negative_prompt": None, "use_resolution_binning": False},
        ),
    }[name]()  # fmt: skip
    found[0].set_progress_bar_config(disable=True)
    return found
