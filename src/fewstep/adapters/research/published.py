"""The configurations of published files, by the names of these: of guided-diffusion the flags of its README, of
score_sde_pytorch its `configs/`. Only what differs from the defaults of the configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["ADM", "ADM_CLASSIFIERS", "SCORE_SDE"]


def _adm(side: int, classes: int = 1000, schedule: str = "linear", **changes: Any) -> dict[str, Any]:
    network = {
        "image_size": side, "num_channels": 256, "num_res_blocks": 2, "num_head_channels": 64, "num_classes": classes,
        "attention_resolutions": [32, 16, 8], "learn_sigma": True, "resblock_updown": True, **changes,
    }  # fmt: skip
    return {"network": network, "noise_schedule": schedule}


ADM: dict[str, dict[str, Any]] = {
    "64x64_diffusion": _adm(
        64, schedule="cosine", num_channels=192, num_res_blocks=3, use_new_attention_order=True
    ),
    "128x128_diffusion": _adm(128, num_head_channels=-1, num_heads=4),
    "256x256_diffusion": _adm(256),
    "256x256_diffusion_uncond": _adm(256, classes=0),
    "512x512_diffusion": _adm(512),
    **{f"lsun_{name}": _adm(256, classes=0) for name in ("bedroom", "cat", "horse", "horse_nodropout")},
}  # fmt: skip

ADM_CLASSIFIERS = {
    f"{side}x{side}_classifier": {"image_size": side, "depth": depth}
    for side, depth in ((64, 4), (128, 2), (256, 2), (512, 2))
}

FOURIER = {"fir": True, "embedding_type": "fourier", "scale_by_sigma": True, "centered": False}
RESIDUAL = {"fir": True, "progressive_input": "residual"}
LARGE = FOURIER | {
    "image_size": 256, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 2, "progressive": "output_skip",
    "progressive_input": "input_skip", "num_scales": 2000,
}  # fmt: skip


def _score_sde(sde: str, network: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"sde": sde, "network": network, **changes}


SCORE_SDE = {
    "vp/cifar10_ddpmpp_continuous": _score_sde("vpsde", {}),
    "vp/cifar10_ddpmpp_deep_continuous": _score_sde("vpsde", {"num_res_blocks": 8}),
    "vp/cifar10_ncsnpp_continuous": _score_sde("vpsde", RESIDUAL),
    "vp/cifar10_ncsnpp_deep_continuous": _score_sde("vpsde", RESIDUAL | {"num_res_blocks": 8}),
    "ve/cifar10_ncsnpp_continuous": _score_sde("vesde", FOURIER | RESIDUAL),
    "ve/cifar10_ncsnpp_deep_continuous": _score_sde("vesde", FOURIER | RESIDUAL | {"num_res_blocks": 8}),
    "ve/bedroom_ncsnpp_continuous": _score_sde("vesde", LARGE, sigma_max=378.0),
    "ve/church_ncsnpp_continuous": _score_sde("vesde", LARGE, sigma_max=380.0),
    "ve/ffhq_256_ncsnpp_continuous": _score_sde("vesde", LARGE, sigma_max=348.0),
    "ve/celebahq_256_ncsnpp_continuous": _score_sde("vesde", LARGE, sigma_max=348.0),
}
