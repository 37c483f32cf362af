"""`fastjac paper`: the paper's experiments, and the report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastjac.commands.options import Device, Progress
from fastjac.commands.together import device_of
from fastjac.paper import DATASETS, PRESETS


def paper(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with the original files, or with a folder of the data set's"
            " name.",
            metavar="DIR",
            exists=True,
            file_okay=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for results and the report.", file_okay=False),
    ],
    dataset: Annotated[
        str, typer.Option(help=f"One of {', '.join(DATASETS)}.", metavar="NAME")
    ] = "mnist",
    preset: Annotated[
        str, typer.Option(help=f"One of {', '.join(PRESETS)}.", metavar="NAME")
    ] = "full",
    seeds: Annotated[
        int, typer.Option(min=0, help="Seeds of the main rows; 0 for the preset's.")
    ] = 0,
    only: Annotated[
        str,
        typer.Option(
            help="Run only these rows or groups, such as jacobian,lambda,cost.",
            metavar="NAMES",
        ),
    ] = "",
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of post-processing; 0 for the preset's.")
    ] = 0,
    lam: Annotated[
        float,
        typer.Option(min=0.0, help="Weight of the Jacobian penalty; 0 as above."),
    ] = 0.0,
    share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of a batch that FGSM perturbs in adversarial training; 0 as"
            " above.",
        ),
    ] = 0.0,
    attacked: Annotated[
        int,
        typer.Option(min=0, help="Test images that all attacks see; 0 as above."),
    ] = 0,
    auto_attack: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="EPS",
            help="Size of AutoAttack, l_inf, which needs torchattacks; 0 as above.",
        ),
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 1,
    verify: Annotated[
        bool, typer.Option(help="Insist on the published files, by checksums.")
    ] = True,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report, run nothing.")
    ] = False,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Run the paper's experiments and write the report; finished jobs are kept."""
    from fastjac.paper import reproduce

    outcome = reproduce(
        data,
        dataset,
        out,
        preset=preset,
        seeds=seeds or None,
        only=[name.strip() for name in only.split(",") if name.strip()],
        steps=steps or None,
        lam=lam or None,
        share=share or None,
        attacked=attacked or None,
        auto_attack=auto_attack or None,
        processes=jobs,
        device=str(device_of(device)),
        verify=verify,
        progress=progress,
        report_only=report_only,
        command=shlex.join(["fastjac", *context.obj]),
    )
    console = Console()
    console.print(f"{outcome.finished} of {outcome.planned} jobs are finished")
    for title in outcome.failed:
        console.print(f"  diverged: {title}", highlight=False)
    for path in outcome.files:
        if path.suffix in (".md", ".html"):
            console.print(f"  {path}", highlight=False, soft_wrap=True)
    if outcome.stopped:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(130)
