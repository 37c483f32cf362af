"""The commands that train: train, harden."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastjac import models
from fastjac.commands.options import (
    Adversarial,
    BatchSize,
    Data,
    Device,
    Epochs,
    Eps,
    Lr,
    ModelFile,
    Progress,
    Resume,
    SaveEvery,
    Seed,
)
from fastjac.commands.steps import (
    check_fit,
    checkpoint_of,
    finish,
    loader,
    make_network,
    open_images,
    resumable,
)
from fastjac.commands.together import together
from fastjac.harden import PENALTIES
from fastjac.harden import harden as harden_model
from fastjac.harden import train as train_model


def train(
    context: typer.Context,
    data: Data,
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(models.names())}.", metavar="NAME")
    ],
    out: Annotated[
        Path, typer.Option(help="Model file to write.", metavar="FILE", dir_okay=False)
    ],
    widths: Annotated[
        str, typer.Option(help="The network's widths, such as 32,64,128,256.")
    ] = "",
    epochs: Epochs = 10,
    lr: Lr = 1e-3,
    batch_size: BatchSize = 64,
    adversarial: Adversarial = 0.0,
    eps: Eps = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    checkpoint_every: SaveEvery = 200,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Train a network by cross-entropy: the phase before hardening."""
    with together(device) as place:
        torch.manual_seed(seed)
        images = open_images(data)
        network = make_network(model, widths, images)
        check_fit(images, network)
        checkpoint = checkpoint_of(out, resume)
        with resumable(context.obj):
            result = train_model(
                network.to(place.device),
                loader(images.train, batch_size, shuffle=True),
                epochs=epochs,
                lr=lr,
                adversarial=adversarial,
                eps=eps,
                bounds=(0.0, 1.0),
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                progress=progress,
                seed=seed,
                process_group=place.group,
            )
        if place.leads:
            finish(out, checkpoint, network, images, str(result), context.obj)


def harden(
    context: typer.Context,
    data: Data,
    model_file: ModelFile,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Model file to write; by default beside the given one, its name with"
            " -hardened.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    penalty: Annotated[
        str, typer.Option(help=f"One of {', '.join(PENALTIES)}, none.", metavar="NAME")
    ] = "jacobian",
    lam: Annotated[float, typer.Option(min=0.0, help="Weight of the penalty.")] = 0.1,
    reduction: Annotated[
        str, typer.Option(help="frobenius, sum or mean; by default the paper's.")
    ] = "",
    projections: Annotated[
        int, typer.Option(min=0, help="Random projections; 0 for the exact penalty.")
    ] = 0,
    epochs: Epochs = 2,
    lr: Lr = 1e-4,
    batch_size: BatchSize = 64,
    adversarial: Adversarial = 0.0,
    eps: Eps = 0.1,
    seed: Seed = 0,
    resume: Resume = False,
    checkpoint_every: SaveEvery = 200,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Harden a trained network: a few epochs more, with a penalty on its Jacobian."""
    if penalty not in (*PENALTIES, "none"):
        raise typer.BadParameter(
            f"{penalty!r} is not one of {', '.join(PENALTIES)}, none",
            param_hint="--penalty",
        )
    options: dict[str, Any] = {"reduction": reduction} if reduction else {}
    if projections:
        options["projections"] = projections
    with together(device) as place:
        network, _ = models.load(model_file)
        images = open_images(data)
        check_fit(images, network)
        out = out or model_file.with_name(
            f"{model_file.stem}-hardened{model_file.suffix}"
        )
        checkpoint = checkpoint_of(out, resume)
        with resumable(context.obj):
            result = harden_model(
                network.to(place.device),
                loader(images.train, batch_size, shuffle=True),
                penalty=None if penalty == "none" else penalty,
                lam=lam,
                penalty_options=options,
                epochs=epochs,
                lr=lr,
                adversarial=adversarial,
                eps=eps,
                bounds=(0.0, 1.0),
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                progress=progress,
                seed=seed,
                process_group=place.group,
            )
        if place.leads:
            finish(out, checkpoint, network, images, str(result), context.obj)
