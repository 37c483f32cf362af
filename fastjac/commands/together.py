"""Where a command runs: its device, and other processes that torchrun has started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist
import typer

from fastjac.harden import ProcessLostError


@dataclass(frozen=True)
class Place:
    """Where a command runs: its device, and the processes that run it with this one."""

    device: torch.device
    group: str | None = None
    leads: bool = True


def processes() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launcher() -> list[str]:
    """Return the words that start a command as this one was started."""
    if processes() == 1:
        return ["fastjac"]
    nodes = processes() // int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
    several = ["--nnodes", str(nodes)] if nodes > 1 else []
    here = os.environ.get("LOCAL_WORLD_SIZE", str(processes()))
    return ["torchrun", *several, "--nproc-per-node", here, "-m", "fastjac"]


def device_of(name: str) -> torch.device:
    """The torch device of this name, checked to be usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(
            f"{name!r} cannot be used: {error}", param_hint="--device"
        ) from None


@contextmanager
def together(device: str) -> Iterator[Place]:
    """Context with torch.distributed set up, if torchrun has started this process.

    Only the first process says anything in it; errors are told outside.
    """
    if processes() == 1:
        yield Place(device_of(device))
        return
    place = _device(device)
    signal.signal(signal.SIGTERM, _stopped)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    leads = dist.get_rank() == 0
    with ExitStack() as silence:
        if not leads:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        yield Place(place, "world", leads)
    dist.destroy_process_group()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    """End this process with a message when torchrun, having lost another, asks to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ProcessLostError(
        "told to stop (SIGTERM): another process ended, or the whole run was to; see "
        "what came first. If there is a checkpoint, the same command with --resume "
        "goes on from it, in any number of processes"
    )


def _device(name: str) -> torch.device:
    """The device of this process: a GPU of its own where GPUs are used."""
    found = device_of(name)
    if found.type != "cuda" or found.index not in (None, 0):
        return found
    found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(found)
    return found
