"""Train a class-conditional EDM model of CIFAR-10 and export it as a folder that `fewstep` loads.

    python training/train_classifier.py training/configs/cifar32_selector.toml --to runs/cifar32-selector
    python training/train_model.py train training/configs/cifar32.toml --selector runs/cifar32-selector \\
        --out runs/cifar32 --compile
    python training/train_model.py export runs/cifar32 --ema 0.05 --to src/fewstep/models/cifar32 \\
        --summary "CIFAR-10 at 32x32, 7.0 M parameters, class-conditional"

made the packaged model, on the images that a classifier finds typical of their class.

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022): with s = sigma_data,
c_in = 1 / sqrt(sigma^2 + s^2), c_out = sigma s c_in and c_skip = s^2 c_in^2, the loss is the one of their Table 1,

    || F(c_in x, scale ln sigma, label) - (x_0 - c_skip x) / c_out ||^2,  x = x_0 + sigma n,  ln sigma ~ N(mean, std^2).

diffusers tells a network sines of up to `scale` rad per unit of ln(sigma); EDM's ln(sigma) / 4 is a scale of 250 there.
Training hardly constrains sines so fast: at 250 the answers jittered with ln(sigma), on a scale of 0.03, by a hundredth
of their range, which no solver can follow. At 4 they do not.

AdamW trains everything, or, where `matrix_rate` is above 0, all but the matrices inside the network; these Muon trains,
at that rate: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); rates are comparable with
AdamW's, by Liu et al., Muon is Scalable for LLM Training (2025), section 2.2. A convolution is a matrix of its outputs
by its inputs and places.

A run can be stopped (Ctrl-C) and started again with the same command: it goes on from its last checkpoint, with the
same batches as if it had never stopped. Lengthening a run, by raising `images` before the decay sets in, is allowed.
After it, a new run can begin from what the last one exported: `--initial`, with a new optimizer and another seed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import signal
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.adapters.unet2d import WEIGHTS
from fewstep.bench.classifier import Classifier, load_classifier
from fewstep.bench.images import CLASSES, load_images, to_unit_range
from fewstep.files import check_writable, locked, write_atomically
from fewstep.models import CIFAR10

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)
log = Console(stderr=True)

NULL_LABEL = len(CLASSES)
SIDE = 32
SAMPLING_RANGE = (0.002, 80.0)  # of sigma
LENGTH = ("images", "decay", "checkpoint_every")  # keys of [training] that a run may go on under other values of


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    patch: int
    block_out_channels: list[int]
    layers_per_block: int
    attention: list[bool]
    attention_head_dim: int
    norm_num_groups: int
    resnet_time_scale_shift: str

    def build(self) -> UNet2DModel:
        channels = 3 * self.patch**2
        return UNet2DModel(
            sample_size=SIDE // self.patch,
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in self.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)),
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            attention_head_dim=self.attention_head_dim,
            norm_num_groups=self.norm_num_groups,
            resnet_time_scale_shift=self.resnet_time_scale_shift,
            num_class_embeds=NULL_LABEL + 1,
        )


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    mean: float
    std: float
    sigma_data: float
    scale: float


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    images: int
    batch: int
    learning_rate: float
    matrix_rate: float
    weight_decay: float
    warmup: int
    decay: int
    label_dropout: float
    typical: float
    ema: list[float]
    precision: str
    checkpoint_every: int

    def share(self, seen: int) -> float:
        """Of the learning rates after `seen` images: a ramp up to 1, a plateau, a ramp down to zero."""
        return min(1.0, (seen + self.batch) / self.warmup, (self.images - seen) / self.decay)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    seed: int
    network: NetworkConfig
    noise: NoiseConfig
    training: TrainingConfig

    @classmethod
    def read(cls, path: Path) -> Config:
        """The configuration of a TOML file; a key too many or too few is an error."""
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        parts = {"network": NetworkConfig, "noise": NoiseConfig, "training": TrainingConfig}
        try:
            return cls(**{key: parts[key](**value) if key in parts else value for key, value in content.items()})
        except TypeError as error:
            raise typer.BadParameter(f"{path}: {error}") from error

    def changed(self, begun: dict[str, Any]) -> list[str]:
        """What is not as in the configuration that a run was `begun` with, and has to be to go on."""
        now = dataclasses.asdict(self)
        keys = [(part, key) for part in ("network", "noise", "training") for key in now[part] if key not in LENGTH]
        found = [key for part, key in keys if now[part][key] != begun[part].get(key)]
        return found if now["seed"] == begun["seed"] else ["seed", *found]


def training_images(data: str) -> tuple[Tensor, Tensor]:
    images, labels = load_images(data)
    if labels is None or images.shape[1:] != (3, SIDE, SIDE) or labels.max() >= NULL_LABEL:
        raise typer.BadParameter(f"{data} must hold images of {SIDE} x {SIDE} pixels in {NULL_LABEL} classes")
    return images, labels


@torch.no_grad()
def typical(images: Tensor, labels: Tensor, share: float, classifier: Classifier) -> Tensor:
    """Which images to train on: of each class the `share` that the classifier is surest of, both ways round.

    What a small network cannot draw it does not see: DeVries et al., Instance Selection for GANs (2020), by density in
    features where this goes by the probability of the class.
    """
    sure = torch.empty(len(images))
    for part in torch.arange(len(images)).split(500):
        x = to_unit_range(images[part])
        logits = classifier(x) + classifier(x.flip(-1))
        sure[part] = (logits / 2).log_softmax(1).gather(1, labels[part, None])[:, 0]
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    kept = [each[sure[each].argsort(descending=True)[: math.ceil(share * len(each))]] for each in members]
    return torch.cat(kept).sort().values


CARD = """# {name}

A class-conditional denoiser of CIFAR-10 at 32×32, RGB in [−1, 1]: a diffusers `UNet2DModel` of {parameters:,}
parameters, float16 weights, on images folded by {patch}×{patch} pixels.

| | |
|---|---|
| Preconditioning | EDM, σ_data = {sigma_data:g}: `D(x; σ) = c_skip x + c_out F(c_in x, {scale:g} ln σ, label)` |
| Labels | 0–9 in alphabetical order of the classes; 10 is "no class" ({dropout:.0%} of the training samples) |
| Noise levels | ln σ ~ N({mean:g}, {std:g}²) |
| Images | {chosen}, flipped half the time |
| Training | EDM loss, {optimizer}, batch {batch} |
| Length | {steps:,} steps ({images:,} images){initial} |
| Average | relative length {ema} of the run |
| Loss | {loss:.4f}, over the last {window:,} images |
| Sampling range | σ from 80 to 0.002 |

Data: CIFAR-10's training images (A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009),
collected for research, without an explicit licence.

Written by `python training/train_model.py export`; the configuration is `training/configs/{name}.toml`.
"""


def make_batch(images: Tensor, labels: Tensor, config: Config, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean images, folded; their labels, some dropped; noise levels; noise. A function of the seed and the step."""
    generator = torch.Generator().manual_seed(config.seed * 2**32 + step)
    count = config.training.batch

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    chosen = torch.randint(len(images), (count,), generator=generator)
    flipped, dropped = uniform() < 0.5, uniform() < config.training.label_dropout
    clean = to_unit_range(images[chosen.to(images.device)])
    clean = torch.where(flipped.to(clean.device)[:, None, None, None], clean.flip(-1), clean)
    clean = torch.nn.functional.pixel_unshuffle(clean, config.network.patch)
    wanted = labels[chosen.to(labels.device)].masked_fill(dropped.to(labels.device), NULL_LABEL)
    sigma = torch.exp(torch.randn(count, generator=generator) * config.noise.std + config.noise.mean)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, wanted, sigma.to(clean.device), noise.to(clean.device)


def edm_loss(network: torch.nn.Module, config: Config, clean: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor):
    """The mean over the batch of the loss above; its expectation is 1 for a network that answers 0."""
    data, level = config.noise.sigma_data, sigma[:, None, None, None]
    c_in = torch.rsqrt(level**2 + data**2)
    x = clean + level * noise
    target = (clean - (data * c_in) ** 2 * x) / (level * data * c_in)
    given = (c_in * x).contiguous(memory_format=torch.channels_last)
    autocast = config.training.precision == "bfloat16"
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=autocast):
        output = network(given, config.noise.scale * sigma.log(), class_labels=labels).sample
    return (output.float() - target).square().mean()


class Optimizers:
    """AdamW, and Muon for the matrices inside the network where `matrix_rate` is above 0.

    Of three levels of 128 channels in batches of 128, a matrix_rate of 1.5e-3 with a weight_decay of 0.1 was the best
    in its first 80,000 images (loss 0.2295, where 5e-4 with 0.01 had 0.2376). 3e-3 with 0.01 was as quick, and from
    130,000 on went back, from 0.2275 to 0.2516 at 260,000; less rate afterwards did not mend it.
    """

    def __init__(self, network: UNet2DModel, config: TrainingConfig):
        ends = (network.conv_in, network.conv_out, network.class_embedding)
        outer = {parameter for module in ends for parameter in module.parameters()}
        self.inner, rest = [], []
        for parameter in network.parameters():
            inside = config.matrix_rate and parameter.ndim > 1 and parameter not in outer
            (self.inner if inside else rest).append(parameter)
        # Muon takes matrices alone: these share their memory with the network's.
        self.matrices = [torch.nn.Parameter(_matrix(parameter.detach())) for parameter in self.inner]
        decay = config.weight_decay
        self.rates = {"adamw": config.learning_rate}
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        }
        if self.matrices:
            self.rates["muon"] = config.matrix_rate
            self.parts["muon"] = torch.optim.Muon(self.matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    def step(self, share: float) -> None:
        """A step at `share` of the rates, along the gradients of the network's parameters."""
        for matrix, parameter in zip(self.matrices, self.inner, strict=True):
            matrix.grad = _matrix(parameter.grad)
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = share * self.rates[name]
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.parts.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, optimizer in self.parts.items():
            optimizer.load_state_dict(saved[name])


def _matrix(weight: Tensor) -> Tensor:
    """Outputs by inputs; of a convolution in channels-last memory a view."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


class Averages:
    """Moving averages of the weights whose length is a fixed share of the run so far.

    After step t the newest weights enter with share (1 + gamma) / (t + gamma): weights of age a count like
    (1 - a / t)^gamma, of relative length 1 / (gamma + 2). Karras et al., Analyzing and Improving the Training
    Dynamics of Diffusion Models (2024), section 3.1, with a rational form of their eq. (2).
    """

    def __init__(self, lengths: list[float], network: torch.nn.Module):
        self.gammas = {str(length): 1 / length - 2 for length in lengths}
        self.weights = {key: [p.detach().clone() for p in network.parameters()] for key in self.gammas}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        for key, gamma in self.gammas.items():
            share = (1 + gamma) / (step + 1 + gamma)
            torch._foreach_lerp_(self.weights[key], list(network.parameters()), share)


def begin_from(folder: Path, network: torch.nn.Module) -> None:
    """Copy the weights of an exported model."""
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (FileNotFoundError, RuntimeError) as error:  # the latter names what is missing or misshapen
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{folder} is not of this network ({reason})", param_hint="--initial") from error


@app.command()
def train(
    ctx: typer.Context,
    config_path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="the run's TOML file")],
    out: Annotated[Path, typer.Option(help="folder of the run")],
    data: Annotated[str, typer.Option(help="npz file, or a name on the Hugging Face hub")] = CIFAR10,
    initial: Annotated[Path | None, typer.Option(help="folder of an exported model to begin from", exists=True)] = None,
    selector: Annotated[
        Path | None, typer.Option(help="folder of the classifier that tells typical images", exists=True)
    ] = None,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
    minutes: Annotated[float, typer.Option(help="stop, with a checkpoint, after this long")] = math.inf,
    compiled: Annotated[bool, typer.Option("--compile", help="compile first: a minute, for faster steps")] = False,
) -> None:
    """Train, or go on training; writes OUT/checkpoint.pt and OUT/log.jsonl."""
    config = Config.read(config_path)
    check_writable(out)
    ctx.with_resource(locked(out))
    if (config.training.typical < 1) != (selector is not None):
        raise typer.BadParameter(
            f"{config_path} trains on {config.training.typical:.0%} of each class, and a classifier made by "
            "training/train_classifier.py tells which: give it where that is less than all, and only there",
            param_hint="--selector",
        )
    images, labels = training_images(data)
    torch.manual_seed(config.seed)
    network = config.network.build()
    if initial is not None:
        begin_from(initial, network)
    network.to(device, memory_format=torch.channels_last)
    if device == "cpu":
        unfuse_attention(network)
    answer = torch.compile(network, dynamic=False) if compiled else network
    optimizers = Optimizers(network, config.training)
    averages = Averages(config.training.ema, network)
    checkpoint = out / "checkpoint.pt"
    begun_from, chosen_by = (None if folder is None else folder.resolve().name for folder in (initial, selector))
    step, losses = 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for option, name in (("initial", begun_from), ("selector", chosen_by)):
            if saved[option] != name:
                raise typer.BadParameter(
                    f"{checkpoint} was begun with {saved[option] or 'none'}: give the same, or another --out",
                    param_hint=f"--{option}",
                )
        if changed := config.changed(saved["config"]):
            raise typer.BadParameter(
                f"{checkpoint} was begun with another {', '.join(changed)}: choose another --out", param_hint="CONFIG"
            )
        network.load_state_dict(saved["network"])
        optimizers.load_state_dict(saved["optimizers"])
        averages.weights, step = saved["averages"], saved["step"]
        log.print(f"going on from step {step:,}")
    if selector is not None:
        log.print("asking the classifier for the images that are typical of their class")
        chosen = typical(images, labels, config.training.typical, load_classifier(selector))
        images, labels = images[chosen], labels[chosen]
    images, labels = images.to(device), labels.to(device)

    def save() -> None:
        buffer = io.BytesIO()
        content = {
            "config": dataclasses.asdict(config),
            "initial": begun_from,
            "selector": chosen_by,
            "network": network.state_dict(),
            "optimizers": optimizers.state_dict(),
            "averages": averages.weights,
            "step": step,
        }
        torch.save(content, buffer)
        write_atomically(checkpoint, buffer.getvalue())

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill leaves a checkpoint as well
    settings, started = config.training, time.monotonic()
    total = settings.images // settings.batch
    every = max(1, settings.checkpoint_every // settings.batch)
    columns = (TextColumn("{task.fields[loss]}"), BarColumn(), TextColumn("{task.completed:,}/{task.total:,} images"))
    with Progress(*columns, TimeRemainingColumn(), console=log) as progress:
        task = progress.add_task("", total=settings.images, completed=step * settings.batch, loss="loss -")
        try:
            while step < total and time.monotonic() - started < 60 * minutes:
                share = settings.share(step * settings.batch)
                loss = edm_loss(answer, config, *make_batch(images, labels, config, step))
                network.zero_grad()
                loss.backward()
                optimizers.step(share)
                step += 1
                averages.update(network, step)
                losses.append(loss.detach())
                if step % every == 0 or step == total:
                    mean = torch.stack(losses).mean().item()
                    if not math.isfinite(mean):
                        raise RuntimeError(f"the loss is {mean} at step {step}: lower learning_rate")
                    record = {"images": step * settings.batch, "loss": mean, "rate": share * settings.learning_rate}
                    record["over"] = len(losses) * settings.batch
                    losses = []
                    save()
                    record["seconds"] = round(time.monotonic() - started, 1)
                    with (out / "log.jsonl").open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    progress.update(task, loss=f"loss {mean:.4f}")
                progress.update(task, completed=step * settings.batch)
        except KeyboardInterrupt:
            pass
        save()
    log.print(f"{checkpoint}: step {step:,} of {total:,}")


def unfuse_attention(network: UNet2DModel) -> None:
    """Attention by two products and a softmax: on CPU the gradient of torch's fused one takes a fourth of a step."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="folder of a run")],
    to: Annotated[Path, typer.Option(help="folder of the model")],
    ema: Annotated[str, typer.Option(help="which average, as written in the run's configuration")] = "0.05",
    summary: Annotated[str, typer.Option(help="a line for `fewstep models`")] = "",
) -> None:
    """Write one of the averages as config.json, float16 safetensors, fewstep.json and a card."""
    if not (run / "log.jsonl").exists():
        raise typer.BadParameter(f"{run} has no log.jsonl yet: train on, until the loss is written", param_hint="RUN")
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    if ema not in saved["averages"]:
        raise typer.BadParameter(f"{ema!r} is none of {', '.join(saved['averages'])}", param_hint="--ema")
    network = NetworkConfig(**saved["config"]["network"]).build()
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for tensor, average in zip(weights.values(), saved["averages"][ema], strict=True):
            tensor.copy_(average)
    noise, training = NoiseConfig(**saved["config"]["noise"]), TrainingConfig(**saved["config"]["training"])
    check_writable(to)
    network.save_config(to)
    halves = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in weights.items()}
    write_atomically(to / WEIGHTS, save(halves))
    facts = {
        "preconditioning": "edm",
        "patch": saved["config"]["network"]["patch"],
        "sigma_data": noise.sigma_data,
        "noise_scale": noise.scale,
        "sigma_min": SAMPLING_RANGE[0],
        "sigma_max": SAMPLING_RANGE[1],
        "classes": list(CLASSES),
        "null_label": NULL_LABEL,
        "summary": summary,
    }
    write_atomically(to / "fewstep.json", (json.dumps(facts, indent=2) + "\n").encode())
    muon = f", Muon {training.matrix_rate:g} for the matrices inside" if training.matrix_rate else ""
    card = CARD.format(
        name=saved["config"]["name"],
        parameters=sum(tensor.numel() for tensor in weights.values()),
        patch=facts["patch"],
        **dataclasses.asdict(noise),
        dropout=training.label_dropout,
        chosen=f"of each class the {training.typical:.0%} that {saved['selector']} is surest of"
        if saved["selector"]
        else "all",
        optimizer=f"AdamW {training.learning_rate:g}{muon}",
        batch=training.batch,
        steps=saved["step"],
        images=saved["step"] * training.batch,
        initial=f", begun from {saved['initial']}" if saved["initial"] else "",
        ema=ema,
        loss=last["loss"],
        window=last["over"],
    )
    write_atomically(to / "README.md", card.encode())


if __name__ == "__main__":
    app()
