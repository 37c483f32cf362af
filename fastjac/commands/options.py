"""The options that several commands take, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
