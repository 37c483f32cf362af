"""What the commands have in common: opening, checking, saving, telling."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastjac import data, models
from fastjac.commands.together import launcher
from fastjac.harden import TrainingInterrupted
from fastjac.harden.modes import evaluating


def make_network(
    name: str, widths: str = "", images: data.ImageData | None = None
) -> models.Network:
    """A new network of this name, with widths such as "32,64" and to fit the images."""
    options: dict[str, Any] = {}
    if widths:
        try:
            options["widths"] = tuple(int(width) for width in widths.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"{widths!r} is not a list of whole numbers such as 32,64",
                param_hint="--widths",
            ) from None
    if images is not None:
        options["classes"] = images.classes
        if name == "mlp":
            options["shape"] = images.shape
    return models.create(name, **options)


def open_images(path: str) -> data.ImageData:
    """The data at ``path``, told on stderr."""
    if path != "digits" and not Path(path).is_dir():
        raise typer.BadParameter(f"there is no folder {path}", param_hint="--data")
    images = data.open_dataset(path)
    print(images, file=sys.stderr)
    return images


def check_fit(images: data.ImageData, network: models.Network) -> None:
    """Refuse images of another size, or of more classes, than the network's."""
    have, want = ("x".join(map(str, s)) for s in (images.shape, network.input_shape))
    if have != want:
        raise typer.BadParameter(
            f"its images are {have}, the network {network.name} takes {want}",
            param_hint="--data",
        )
    classes = network.options.get("classes", 10)
    if images.classes > classes:
        raise typer.BadParameter(
            f"it has {images.classes} classes, the network gives {classes} logits",
            param_hint="--data",
        )


def loader(part: TensorDataset, size: int, *, shuffle: bool) -> DataLoader:
    """Batches of a data set."""
    return DataLoader(part, batch_size=size, shuffle=shuffle)


def checkpoint_of(out: Path, resume: bool) -> Path:
    """The file that a run to ``out`` keeps its checkpoints in while it lasts."""
    path = out.with_name(out.name + ".ckpt")
    if path.exists() and not resume:
        raise typer.BadParameter(
            f"{path} holds an unfinished run: add --resume to go on with it, or delete"
            " that file to start over",
            param_hint="--out",
        )
    if resume and not path.exists():
        raise typer.BadParameter(
            f"there is no checkpoint at {path} to go on from", param_hint="--resume"
        )
    return path


@contextmanager
def resumable(arguments: list[str]) -> Iterator[None]:
    """Context in which Ctrl-C ends the command with how to take it up again."""
    try:
        yield
    except TrainingInterrupted as stopped:
        again = [a for a in arguments if a != "--resume"]
        print(
            f"\n{str(stopped).split(';')[0]}; to go on:\n"
            f"  {shlex.join([*launcher(), *again])} --resume",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


@contextmanager
def interruptible(where: str = "", saved: Path | None = None) -> Iterator[None]:
    """Context in which Ctrl-C ends the command, told ``where`` if ``saved`` exists."""
    try:
        yield
    except KeyboardInterrupt:
        kept = saved is not None and saved.exists()
        told = where if kept else "nothing was saved"
        print(f"\ninterrupted: {told}", file=sys.stderr)
        raise typer.Exit(130) from None


def finish(
    out: Path,
    checkpoint: Path,
    network: models.Network,
    images: data.ImageData,
    history: str,
    arguments: list[str],
) -> None:
    """Write the model, drop the checkpoint, and say how good the model is."""
    models.save(out, network, {"command": shlex.join(["fastjac", *arguments])})
    checkpoint.unlink(missing_ok=True)
    print(history)
    print(f"test accuracy {accuracy(network, images.test):.2%}")
    if images.check is not None:
        print(f"second check {accuracy(network, images.check):.2%}")
    for note in images.notes:
        print(note)
    print(f"written to {out}")


def accuracy(network: nn.Module, part: TensorDataset) -> float:
    """Share of the images that the network, in eval mode, classifies rightly."""
    device = next(network.parameters()).device
    hits = 0
    with evaluating(network), torch.no_grad():
        for x, y in loader(part, 500, shuffle=False):
            hits += int((network(x.to(device)).argmax(1) == y.to(device)).sum())
    return hits / len(part)


def notes_of(images: data.ImageData, part: str) -> tuple[str, ...]:
    """The data's notes that belong beside numbers of a part ("" is the test)."""
    return tuple(n for n in images.notes if n.startswith("second") == bool(part))
