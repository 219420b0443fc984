"""Pipelines of diffusers with their text encoders, tiny and untrained, in their own file format. Nothing is fetched."""

import inspect
from functools import cache
from pathlib import Path

import diffusers as df
import torch
import transformers as tf

from fewstep.integrations.diffusers import EVODiffScheduler
from integrations import pipelines as bare

CHARACTERS = [chr(code) for code in range(33, 127)]
WORDS = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
NFE = 4
LENGTH, WIDTH = 8, 8  # of a text, in tokens and numbers
SMALL = {"hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip_tokenizer():
    return tf.CLIPTokenizer({word: i for i, word in enumerate(WORDS)}, [], model_max_length=LENGTH)


def _clip(kind):
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = tf.CLIPTextConfig(
        vocab_size=len(WORDS), max_position_embeddings=LENGTH, projection_dim=WIDTH, **ends, **SMALL
    )
    return kind(config).eval()


def save_clip(folder, width):
    """A CLIP whose embeddings have `width` numbers, with what reads texts and images for it."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": LENGTH, **ends, **SMALL}
    vision = {"image_size": 16, "patch_size": 8, **SMALL}
    sides = {"height": 16, "width": 16}
    for part in (
        tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)), clip_tokenizer(),
        tf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sides),
    ):  # fmt: skip
        part.save_pretrained(folder)
    return folder


def t5():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in CHARACTERS)]
    tokenizer = tf.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=LENGTH)
    config = tf.T5Config(vocab_size=len(pieces), d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return tokenizer, tf.T5EncoderModel(config).eval()


def gemma():
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *CHARACTERS, "\n"]
    tokenizer = tf.GemmaTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[])
    config = tf.Gemma2Config(vocab_size=len(vocabulary), num_key_value_heads=1, head_dim=4, **SMALL)
    return tokenizer, tf.Gemma2Model(config).eval()


def _stable_diffusion(scheduler):
    parts = {**bare.stable_diffusion_parts(), "scheduler": scheduler}
    return df.StableDiffusionPipeline(
        **{**parts, "text_encoder": _clip(tf.CLIPTextModel), "tokenizer": clip_tokenizer()}
    )


def sd1():
    return _stable_diffusion(bare.stable_diffusion_parts()["scheduler"])


def sd2():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return _stable_diffusion(
        df.DDIMScheduler(**betas, prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    )


def sdxl():
    # Its two encoders' texts stand side by side.
    network = bare.unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=WIDTH + 6 * 2,
    )  # fmt: skip
    parts = {**bare.sdxl_parts(), "unet": network, "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer()}
    encoders = {"text_encoder": _clip(tf.CLIPTextModel), "text_encoder_2": _clip(tf.CLIPTextModelWithProjection)}
    return df.StableDiffusionXLPipeline(**{**parts, **encoders})


def sd3():
    network = df.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )  # fmt: skip
    tokenizer, encoder = t5()
    config = encoder.config
    config.d_model = 2 * WIDTH
    parts = {
        "text_encoder": _clip(tf.CLIPTextModelWithProjection), "text_encoder_2": _clip(tf.CLIPTextModelWithProjection),
        "text_encoder_3": tf.T5EncoderModel(config).eval(), "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(), "tokenizer_3": tokenizer,
    }  # fmt: skip
    return df.StableDiffusion3Pipeline(**{**bare.sd3_parts(), **parts, "transformer": network.eval()})


def flux():
    tokenizer, encoder = t5()
    parts = {
        "text_encoder": _clip(tf.CLIPTextModel), "tokenizer": clip_tokenizer(), "text_encoder_2": encoder,
        "tokenizer_2": tokenizer,
    }  # fmt: skip
    return df.FluxPipeline(**{**bare.flux_parts(), **parts})


def sana():
    tokenizer, encoder = gemma()
    pipe = bare.sana()
    return df.SanaPipeline(
        vae=pipe.vae, transformer=pipe.transformer, scheduler=pipe.scheduler, text_encoder=encoder, tokenizer=tokenizer
    )


def pixart():
    tokenizer, encoder = t5()
    pipe = bare.pixart()
    return df.PixArtSigmaPipeline(
        vae=pipe.vae, transformer=pipe.transformer, scheduler=pipe.scheduler, text_encoder=encoder, tokenizer=tokenizer
    )


def dit():
    pipe = bare.dit()
    return df.DiTPipeline(pipe.transformer, pipe.vae, pipe.scheduler, id2label={0: "tench, Tinca tinca", 1: "goldfish"})


def ldm():
    autoencoder = df.VQModel(block_out_channels=(4,), norm_num_groups=1, latent_channels=3, num_vq_embeddings=16)
    scheduler = df.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
    return df.LDMPipeline(autoencoder.eval(), bare.unconditional_unet(), scheduler)


def ddpm():
    return df.DDPMPipeline(bare.unconditional_unet(), df.DDPMScheduler())


TEXT = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux, "sana": sana, "pixart": pixart}
OTHERS = {"dit": dit, "ldm": ldm, "ddpm": ddpm}
PIPELINES = {**TEXT, **OTHERS}
SIZES = {"flux": (8, 8), "sana": (32, 32)}  # height, width; of others, what they say themselves


@cache
def _built(name):
    torch.manual_seed(sum(map(ord, name)))
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(name: str, folder: Path) -> Path:
    _built(name).save_pretrained(folder)
    return folder


def reference(folder, name, guidance, negative=None, prompts=("a cat", "two"), labels=(1, 7), **options):
    """The pipeline's own run from the noise of seeds 0 and 1."""
    pipe = df.DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    takes = inspect.signature(type(pipe).__call__).parameters
    call = {"num_inference_steps": NFE, "output_type": "np", **options}
    if name in TEXT:
        call |= {"prompt": list(prompts), "true_cfg_scale" if name == "flux" else "guidance_scale": guidance}
        call |= {"use_resolution_binning": False} if "use_resolution_binning" in takes else {}
        call |= dict(zip(("height", "width"), SIZES[name], strict=True)) if name in SIZES else {}
        if negative is not None or (name == "flux" and guidance > 1):
            call["negative_prompt"] = [negative or ""] * 2
    else:
        call |= {"class_labels": list(labels), "guidance_scale": guidance} if name == "dit" else {"batch_size": 2}
        call["generator"] = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return torch.as_tensor(pipe(**call, return_dict=False)[0])
