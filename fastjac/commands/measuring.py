"""The commands that look at a trained network: evaluate, explain, and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fastjac
from fastjac import models
from fastjac.commands.options import (
    BatchSize,
    Data,
    Device,
    ModelFile,
    Progress,
    Seed,
)
from fastjac.commands.steps import (
    check_fit,
    interruptible,
    loader,
    make_network,
    notes_of,
    open_images,
)
from fastjac.commands.together import device_of


def evaluate(
    data: Data,
    model_file: ModelFile,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a JSON of every number and figures.", file_okay=False
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Test images to use; 0 for all.")
    ] = 0,
    batch_size: BatchSize = 250,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File to go on from after an interruption.", metavar="FILE"),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Measure how robust a network is: DeepFool, FGSM, Jacobian norms and bounds."""
    from fastjac import robustness

    network, _ = models.load(model_file)
    images = open_images(data)
    check_fit(images, network)
    network.to(device_of(device))
    console = Console()
    for name, part in {"": images.test, "check": images.check}.items():
        if part is None:
            continue
        saved = checkpoint
        if saved is not None and name:
            saved = saved.with_name(f"{saved.name}.{name}")
        with interruptible(f"saved to {saved}; the same command goes on", saved):
            report = robustness.evaluate(
                network,
                loader(part, batch_size, shuffle=False),
                bounds=(0.0, 1.0),
                limit=limit or None,
                checkpoint=saved,
                seed=seed,
                progress=progress,
                notes=notes_of(images, name),
            )
        console.print(report)
        if out is not None:
            folder = out / name
            report.save(folder / "evaluation.json")
            for path in [folder / "evaluation.json", *report.plot(folder)]:
                console.print(f"  {path}", highlight=False, soft_wrap=True)


def explain(
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(models.names())}.", metavar="NAME")
    ] = "",
    model_file: Annotated[
        Path | None,
        typer.Option(
            help="Model written by fastjac.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Take the images from here.", metavar="DIR")
    ] = "",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    device: Device = "auto",
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure each layer's share of time.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Print a table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how the penalty runs through a network: fused, sparse, dense, and why."""
    if bool(model) == (model_file is not None):
        raise typer.BadParameter(
            "give one of the two", param_hint="--model / --model-file"
        )
    torch.manual_seed(seed)
    network = (
        make_network(model, "") if model_file is None else models.load(model_file)[0]
    )
    x = torch.rand(batch_size, *network.input_shape)
    if data:
        images = open_images(data)
        check_fit(images, network)
        x = images.test.tensors[0][:batch_size]
    place = device_of(device)
    network.to(place).eval()
    explanation = fastjac.explain(network, x.to(place), profile=profile)
    if as_json:
        print(json.dumps(explanation.as_dict(), indent=2))
    elif table:
        Console().print(explanation)
    else:
        print(explanation)


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how this fastjac was built and what it runs on."""
    built = fastjac.build_info()
    print(json.dumps(built.as_dict(), indent=2) if as_json else built)
