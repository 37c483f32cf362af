"""The commands of `fastjac`, which `fastjac.cli` runs."""

from __future__ import annotations

from typing import Any

import typer

from fastjac.checkpoint import CheckpointError
from fastjac.commands.measuring import evaluate, explain, info
from fastjac.commands.paper import paper
from fastjac.commands.showing import demo
from fastjac.commands.together import processes
from fastjac.commands.training import harden, train
from fastjac.data import DataError
from fastjac.harden import NonFiniteLossError, ProcessLostError
from fastjac.paper import RunError

UsageError: Any = typer.BadParameter.__mro__[1]  # typer and click differ on its place
EXPECTED = (
    DataError,
    CheckpointError,
    NonFiniteLossError,
    ProcessLostError,
    RunError,
    ImportError,
    OSError,
)
#: Commands that torchrun may start in several processes.
TOGETHER = {"train", "harden"}

app = typer.Typer(
    help="Exact input-Jacobian penalties: train, harden, and measure classifiers.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, train, harden, evaluate, paper, explain, info):
    app.command()(command)


def names() -> list[str]:
    """Return the names of the commands."""
    return [info.callback.__name__ for info in app.registered_commands if info.callback]


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are left to the caller."""
    command = typer.main.get_command(app)
    if not arguments:
        arguments = ["--help"]
    if processes() > 1 and arguments[0] in set(names()) - TOGETHER:
        raise typer.BadParameter(
            f"{arguments[0]} runs in one process; start it without torchrun"
        )
    outcome = command.main(
        args=arguments, prog_name="fastjac", standalone_mode=False, obj=arguments
    )
    return outcome if isinstance(outcome, int) else 0
