"""A sweep that runs out of memory starts over in smaller chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch

from fastjac import workspace
from fastjac.budget import out_of_memory
from fastjac.precision import without_autocast

if TYPE_CHECKING:
    from fastjac.sweep import Sweep

P = ParamSpec("P")
T = TypeVar("T")


def in_chunks(
    run: Callable[Concatenate[Sweep, P], T],
) -> Callable[Concatenate[Sweep, P], T]:
    """Run a method of `Sweep` outside autograd, in memory of its own.

    If memory runs out, nothing is left of the attempt, its partial sums included, and
    the method starts over, once, in smaller chunks.
    """

    @functools.wraps(run)
    def wrapper(sweep: Sweep, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with _apart(sweep):
                return run(sweep, *args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not (sweep.shrinkable and out_of_memory(error)):
                raise
        # Behind the handler, where the error no longer holds on to the tensors.
        sweep.shrink()
        with _apart(sweep):
            return run(sweep, *args, **kwargs)

    return wrapper


@contextmanager
def _apart(sweep: Sweep) -> Iterator[None]:
    """Without autograd and autocast, with all weights and an arena for rows."""
    autocast = without_autocast(sweep.seeds.device)
    gathered = sweep.linearization.gathered()
    with torch.no_grad(), autocast, gathered, workspace.sweeping():
        yield
