"""Scores of images of texts: CLIP's, and LAION's of what people like. Needs transformers, of the extra `pipelines`.

Not by torchmetrics, whose CLIPScore (1.9) does not run with transformers 5, and keeps a second copy of the network for
the second score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.pipeline_folder import load_part
from ..adapters.research.torch_files import plain_tensors, read_torch_file
from ..files import sha256_of
from ..prompts import digest
from ..statistics import fingerprint

__all__ = ["Aesthetic", "Clip", "ClipScore"]

CLIP_OF_LAION = "openai/clip-vit-large-patch14"  # LAION's score was fitted to it, and most CLIP scores are of it
HEAD_OF_LAION = "sac+logos+ava1-l14-linearMSE.pth"  # of github.com/christophschuhmann/improved-aesthetic-predictor


class Clip:
    """Embeddings of length 1, (B, d), of pixels and of texts, by a CLIP in the folder of `save_pretrained`.

    Pixels are resized, cropped and scaled as the folder says, by Pillow, as OpenAI's were. Long texts are cut.
    """

    def __init__(self, folder: str, device: str = "cpu"):
        try:
            import transformers
        except ImportError as error:
            raise ImportError("CLIP needs transformers: pip install 'fewstep[pipelines]'") from error
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"no CLIP{f' in {path}' if folder else ''}: download {CLIP_OF_LAION} from the Hugging Face hub, its "
                "model.safetensors, merges.txt and *.json, and give the folder as clip"
            )
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with_pillow = "CLIPImageProcessorPil"  # from transformers 5 on
        name = with_pillow if hasattr(transformers, with_pillow) else "CLIPImageProcessor"
        self._sees = load_part(path, getattr(transformers, name))
        self._reads = load_part(path, transformers.CLIPTokenizer)
        self._network = load_part(path, transformers.CLIPModel).eval().requires_grad_(False).to(device)
        self.device, self.identity = device, f"{path.name} sha256:{fingerprint(self._network)}"
        self._texts: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """Of uint8 (B, 3, H, W). Asked again of the same tensor, as by a second score, it is not computed again."""
        if self._last is None or self._last[0] is not pixels:
            seen = self._sees(list(pixels.permute(0, 2, 3, 1).numpy()), return_tensors="pt")["pixel_values"]
            self._last = pixels, _unit(self._network.get_image_features(pixel_values=seen.to(self.device)))
        return self._last[1]

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        for prompt in {*prompts} - self._texts.keys():
            read = self._reads([prompt], truncation=True, return_tensors="pt").to(self.device)
            self._texts[prompt] = _unit(self._network.get_text_features(**read))[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])


class ClipScore:
    """100 max(cos(image, text), 0) of each image and its prompt: seed s has prompt s, in turn.

    Hessel et al., CLIPScore (2021), eq. (1), with 100 for their 2.5, as torchmetrics and tables of papers have it.
    """

    def __init__(self, clip: Clip, prompts: Sequence[str]):
        self.clip, self.prompts = clip, prompts
        told = digest(prompts) or {"count": 0, "sha256": ""}
        self.identity = f"{clip.identity}, {told['count']} prompts sha256:{told['sha256']}"

    def __call__(self, pixels: Tensor, seeds: range) -> Tensor:
        texts = self.clip.texts([self.prompts[seed % len(self.prompts)] for seed in seeds])
        return 100 * (self.clip.images(pixels) * texts).sum(1).clamp_min(0)


class Aesthetic:
    """LAION's aesthetic score, about 1 to 10: an affine function of CLIP's embedding of an image.

    Schuhmann, improved-aesthetic-predictor (2022): linear layers without activations between, here multiplied out, in
    a file of torch.save; the earlier predictor, of one layer, too.
    """

    def __init__(self, clip: Clip, file: str):
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(
                f"no file of LAION's aesthetic score{f' at {path}' if file else ''}: get {HEAD_OF_LAION} of "
                "improved-aesthetic-predictor from GitHub, and give its path as aesthetic"
            )
        layers = plain_tensors(read_torch_file(path), path)
        names = [name.removesuffix("weight") for name in layers if name.endswith("weight")]
        self.identity = f"{path.name} sha256:{sha256_of(path)} of {clip.identity}"
        try:
            self._weight, self._bias = _multiplied([(layers[f"{n}weight"], layers[f"{n}bias"]) for n in names])
            self._weight @ clip.texts([""])[0].cpu().double()
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is no linear function of {clip.identity.split()[0]}'s embeddings ({error}): LAION's are of "
                f"{CLIP_OF_LAION}"
            ) from error
        if not bool(self._weight.isfinite().all() & self._bias.isfinite()):
            raise ValueError(f"{path} holds NaN or inf: copy it again")
        self.clip = clip

    def __call__(self, pixels: Tensor, seeds: range) -> Tensor:
        return self.clip.images(pixels).cpu().double() @ self._weight + self._bias


def _multiplied(layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Weight (d,) and bias () of linear layers one after another, the last of which has one output."""
    weight, bias = (each.double() for each in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias
    if weight.shape[0] != 1:
        raise ValueError(f"it has {len(weight)} outputs")
    return weight[0], bias[0]


def _unit(found: Any) -> Tensor:
    embedded: Tensor = found if isinstance(found, Tensor) else found.pooler_output  # the latter from transformers 5 on
    return torch.nn.functional.normalize(embedded, dim=1)
