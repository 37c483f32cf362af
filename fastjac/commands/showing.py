"""The command that shows what the others do: demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastjac.commands.options import (
    Progress,
    Seed,
)
from fastjac.commands.steps import (
    interruptible,
)


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
