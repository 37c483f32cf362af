"""What each command of `fastjac` does; :mod:`fastjac.cli` runs them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastjac
from fastjac import data, models
from fastjac.checkpoint import CheckpointError
from fastjac.harden import PENALTIES, NonFiniteLossError, TrainingInterrupted
from fastjac.harden import harden as harden_model
from fastjac.harden import train as train_model
from fastjac.harden.modes import evaluating

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

Data = Annotated[
    str,
    typer.Option(
        help="Folder with MNIST-format IDX files or CIFAR-10 binary batches, or the"
        " word digits.",
        metavar="DIR",
    ),
]
ModelFile = Annotated[
    Path,
    typer.Option(
        help="Model written by fastjac.", metavar="FILE", exists=True, dir_okay=False
    ),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
Lr = Annotated[float, typer.Option(help="Learning rate of Adam.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a step.")]
Adversarial = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of the images that FGSM perturbs."),
]
Eps = Annotated[float, typer.Option(help="Size of that FGSM step; pixels lie in 0..1.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Device = Annotated[
    str, typer.Option(help="Such as cpu or cuda; auto takes a GPU if there is one.")
]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


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
    network = _create(model, widths)
    images = _open(data, network)
    checkpoint = _checkpoint_of(out, resume)
    network.to(_device(device))
    with _resumable(context.obj):
        result = train_model(
            network,
            _loader(images.train, batch_size, shuffle=True),
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
    _finish(out, checkpoint, network, images, str(result), context.obj)


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
    images = _open(data, network)
    out = out or model_file.with_name(f"{model_file.stem}-hardened{model_file.suffix}")
    checkpoint = _checkpoint_of(out, resume)
    network.to(_device(device))
    with _resumable(context.obj):
        result = harden_model(
            network,
            _loader(images.train, batch_size, shuffle=True),
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
    _finish(out, checkpoint, network, images, str(result), context.obj)


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
    images = _open(data, network)
    network.to(_device(device))
    console = Console()
    parts = (
        {"": images.test}
        if images.check is None
        else {
            "": images.test,
            "check": images.check,
        }
    )
    for name, part in parts.items():
        saved = checkpoint
        if saved is not None and name:
            saved = saved.with_name(f"{saved.name}.{name}")
        report = robustness.evaluate(
            network,
            _loader(part, batch_size, shuffle=False),
            bounds=(0.0, 1.0),
            limit=limit or None,
            checkpoint=saved,
            seed=seed,
            progress=progress,
            notes=_notes_of(images, name),
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
    network = _create(model, "") if model_file is None else models.load(model_file)[0]
    x = torch.rand(batch_size, *network.input_shape)
    if data:
        x = _open(data, network).test.tensors[0][:batch_size]
    place = _device(device)
    Console().print(fastjac.explain(network.to(place).eval(), x.to(place)))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how this fastjac was built and what it runs on."""
    built = fastjac.build_info()
    print(json.dumps(built.as_dict(), indent=2) if as_json else built)


def _create(name: str, widths: str) -> models.Network:
    options: dict[str, Any] = {}
    if widths:
        try:
            options["widths"] = tuple(int(width) for width in widths.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"{widths!r} is not a list of whole numbers such as 32,64",
                param_hint="--widths",
            ) from None
    return models.create(name, **options)


def _open(path: str, network: models.Network) -> data.ImageData:
    if path != "digits" and not Path(path).is_dir():
        raise typer.BadParameter(f"there is no folder {path}", param_hint="--data")
    images = data.open_dataset(path)
    if images.shape != network.input_shape:
        have, want = (
            "x".join(map(str, s)) for s in (images.shape, network.input_shape)
        )
        raise typer.BadParameter(
            f"its images are {have}, the network {network.name} takes {want}",
            param_hint="--data",
        )
    print(images, file=sys.stderr)
    return images


def _loader(part: TensorDataset, size: int, *, shuffle: bool) -> DataLoader:
    return DataLoader(part, batch_size=size, shuffle=shuffle)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(
            f"{name!r} cannot be used: {error}", param_hint="--device"
        ) from None


def _checkpoint_of(out: Path, resume: bool) -> Path:
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
def _resumable(arguments: list[str]) -> Iterator[None]:
    """Context in which Ctrl-C ends the command with how to take it up again."""
    try:
        yield
    except TrainingInterrupted as stopped:
        again = [a for a in arguments if a != "--resume"]
        print(
            f"\n{str(stopped).split(';')[0]}; to go on:\n"
            f"  fastjac {shlex.join(again)} --resume",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def _finish(
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
    print(f"test accuracy {_accuracy(network, images.test):.2%}")
    if images.check is not None:
        print(f"second check {_accuracy(network, images.check):.2%}")
    for note in images.notes:
        print(note)
    print(f"written to {out}")


def _accuracy(network: nn.Module, part: TensorDataset) -> float:
    device = next(network.parameters()).device
    hits = 0
    with evaluating(network), torch.no_grad():
        for x, y in _loader(part, 500, shuffle=False):
            hits += int((network(x.to(device)).argmax(1) == y.to(device)).sum())
    return hits / len(part)


def _notes_of(images: data.ImageData, part: str) -> tuple[str, ...]:
    """The data's notes that belong beside numbers of a part ("" is the test)."""
    return tuple(n for n in images.notes if n.startswith("second") == bool(part))
