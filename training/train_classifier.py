"""Train a classifier: the one whose features measure distances between sets of images, or one that selects images.

    python training/train_classifier.py training/configs/cifar32_classifier.toml --to runs/cifar32-classifier
    python training/train_classifier.py training/configs/cifar32_selector.toml --to runs/cifar32-selector

It never sees the diffusion model or its samples. The last `held_out` images of a seeded permutation are kept for the
accuracy that its card states.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.bench.classifier import WEIGHTS, Classifier
from fewstep.bench.images import CLASSES, load_images, to_unit_range
from fewstep.files import check_writable, write_atomically
from fewstep.models import CIFAR10

log = Console(stderr=True)

CARD = """# {name}

A classifier of CIFAR-10: a residual network of {parameters:,} parameters, trained on {trained:,} images by
`python training/train_classifier.py training/configs/{config}`.
Accuracy on {held_out:,} training images held out: {accuracy:.1%}. It has seen no diffusion model and no samples of one.
Fréchet distances in its last {features} features are comparable with each other only, never with a published FID.

CIFAR-10 (Krizhevsky, 2009) carries no explicit licence; it was collected for research.
"""


def augmented(images: Tensor, shift: int) -> Tensor:
    """Each image flipped with probability 1/2 and moved by up to `shift` pixels."""
    count, _, side, _ = images.shape
    flipped = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images.flip(-1), images)
    padded = nn.functional.pad(flipped, (shift,) * 4, mode="reflect")
    rows, columns = (torch.randint(2 * shift + 1, (count, 1)) + torch.arange(side) for _ in range(2))
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    classifier.eval()
    right = [
        (classifier(to_unit_range(part)).argmax(1) == wanted).sum().item()
        for part, wanted in zip(images.split(500), labels.split(500), strict=True)
    ]
    classifier.train()
    return sum(right) / len(labels)


def main(
    config_path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="TOML file")],
    to: Annotated[Path, typer.Option(help="folder of the classifier")],
    data: Annotated[str, typer.Option(help="npz file, or a name on the Hugging Face hub")] = CIFAR10,
) -> None:
    config: dict[str, Any] = tomllib.loads(config_path.read_text(encoding="utf-8"))
    check_writable(to)
    images, labels = load_images(data)
    if labels is None or labels.max() >= len(CLASSES):
        raise typer.BadParameter(f"{data} must hold images in {len(CLASSES)} classes", param_hint="--data")
    torch.manual_seed(config["seed"])
    shuffled = torch.randperm(len(images))
    ours, kept = shuffled[: -config["held_out"]], shuffled[-config["held_out"] :]
    classifier = Classifier(tuple(config["widths"]), len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=config["learning_rate"],
        momentum=config["momentum"],
        nesterov=True,
        weight_decay=config["weight_decay"],
    )
    steps = len(ours) // config["batch"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config["learning_rate"], total_steps=config["epochs"] * steps, pct_start=0.2
    )
    loss = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
    for epoch in range(config["epochs"]):
        order = ours[torch.randperm(len(ours))]
        for chosen in track(order.split(config["batch"])[:steps], f"epoch {epoch + 1}", console=log):
            x = augmented(to_unit_range(images[chosen]), config["shift"]).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=config["precision"] == "bfloat16"):
                logits = classifier(x)
            loss(logits.float(), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        log.print(f"epoch {epoch + 1}: {accuracy(classifier, images[kept], labels[kept]):.1%} of the images held out")
    classifier.eval()
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in classifier.state_dict().items()}
    write_atomically(to / WEIGHTS, save({name: t.contiguous() for name, t in tensors.items()}))
    facts = {"widths": config["widths"], "classes": len(CLASSES)}
    write_atomically(to / "config.json", (json.dumps(facts) + "\n").encode())
    classifier.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    card = CARD.format(
        name=to.resolve().name,
        parameters=sum(p.numel() for p in classifier.parameters()),
        trained=len(ours),
        config=config_path.name,
        features=config["widths"][-1],
        held_out=len(kept),
        accuracy=accuracy(classifier, images[kept], labels[kept]),
    )
    write_atomically(to / "README.md", card.encode())


if __name__ == "__main__":
    typer.run(main)
