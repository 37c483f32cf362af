"""What each command of `fastjac` does; `fastjac.cli` runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import fastjac
from fastjac import data, models
from fastjac.checkpoint import CheckpointError
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
    device_of,
    finish,
    interruptible,
    loader,
    make_network,
    notes_of,
    open_images,
    resumable,
)
from fastjac.harden import PENALTIES, NonFiniteLossError
from fastjac.harden import harden as harden_model
from fastjac.harden import train as train_model

UsageError: Any = typer.BadParameter.__mro__[1]  # typer and click differ on its place
EXPECTED = (
    data.DataError,
    CheckpointError,
    NonFiniteLossError,
    ImportError,
    OSError,
)

app = typer.Typer(
    help="Exact input-Jacobian penalties: train, harden, and measure classifiers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def names() -> list[str]:
    """Return the names of the commands."""
    return [info.callback.__name__ for info in app.registered_commands if info.callback]


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are left to the caller."""
    command = typer.main.get_command(app)
    if not arguments:
        arguments = ["--help"]
    outcome = command.main(
        args=arguments, prog_name="fastjac", standalone_mode=False, obj=arguments
    )
    return outcome if isinstance(outcome, int) else 0


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the results.", file_okay=False)
    ] = Path("fastjac-demo"),
    seed: Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="One epoch each, few test images.")
    ] = False,
    progress: Progress = True,
) -> None:
    """Train a small network on digits, harden it, and compare."""
    from fastjac import demo as example

    settings = example.Settings(seed=seed)
    if quick:
        settings = replace(settings, train_epochs=1, harden_epochs=1, test_images=50)
    with interruptible():
        result = example.run(out, settings, progress=progress)
    console = Console()
    console.print(result.table())
    console.print(f"{sum(result.seconds.values()):.0f} s; figure, numbers and models:")
    for path in result.files.values():
        console.print(f"  {path}", highlight=False, soft_wrap=True)


@app.command()
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
    torch.manual_seed(seed)
    images = open_images(data)
    network = make_network(model, widths, images)
    check_fit(images, network)
    checkpoint = checkpoint_of(out, resume)
    network.to(device_of(device))
    with resumable(context.obj):
        result = train_model(
            network,
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
        )
    finish(out, checkpoint, network, images, str(result), context.obj)


@app.command()
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
    network, _ = models.load(model_file)
    images = open_images(data)
    check_fit(images, network)
    out = out or model_file.with_name(f"{model_file.stem}-hardened{model_file.suffix}")
    checkpoint = checkpoint_of(out, resume)
    network.to(device_of(device))
    with resumable(context.obj):
        result = harden_model(
            network,
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
        )
    finish(out, checkpoint, network, images, str(result), context.obj)


@app.command()
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


@app.command()
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
    print(fastjac.explain(network.to(place).eval(), x.to(place)))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how this fastjac was built and what it runs on."""
    built = fastjac.build_info()
    print(json.dumps(built.as_dict(), indent=2) if as_json else built)
