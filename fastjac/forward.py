"""The forward pass of a model that the user handed over, without leaving a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastjac import checks
from fastjac.graph import find_node

Model = Callable[[Tensor], Tensor]


P = ParamSpec("P")
T = TypeVar("T")


def outside_inference_mode(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function build an autograd graph although its caller is in inference mode.

    Its result then carries no gradient, as the caller expects.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapper


def forward(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model with gradients enabled; return logits and the x they depend on.

    ``x`` itself is used if it requires grad, else a detached copy that does, so that
    neither ``x.requires_grad`` nor ``x.grad`` changes.
    """
    checks.check_input(x)
    with torch.enable_grad():
        if x.is_inference():
            x = x.clone()
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        logits = unwrapped(model)(leaf)
    checks.check_logits(logits, leaf)
    return logits, leaf


def unwrapped(model: Model) -> Model:
    """Look into torch.compile and (Distributed)DataParallel wrappers.

    A compiled graph's nodes cannot be read, and DDP counts its own forward passes.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None:
            inner = getattr(model, "_torchdynamo_orig_callable", None)
        if inner is None and isinstance(
            model, (nn.parallel.DistributedDataParallel, nn.DataParallel)
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def locator(model: Model, x: Tensor) -> Callable[[str], str]:
    """Return a function that says where in the model's code a node came from.

    It runs the forward pass once more, recording stack traces; random numbers and
    BatchNorm statistics are put back. It is called only before a fallback.
    """

    def locate(name: str) -> str:
        with (
            torch.random.fork_rng(enabled=True),
            _kept_statistics(model),
            torch.enable_grad(),
            torch.autograd.set_detect_anomaly(True, check_nan=False),
        ):
            leaf = x.detach().requires_grad_()
            logits = unwrapped(model)(leaf)
            node = find_node(logits, name)
        return "" if node is None else _user_line(node.metadata)

    return locate


def _user_line(metadata: dict[str, Any]) -> str:
    """Return the innermost line of a stack trace outside torch and fastjac."""
    ours = {str(Path(torch.__file__).parent), str(Path(__file__).parent)}
    for entry in reversed(metadata.get("traceback_", [])):
        lines = entry.strip().splitlines()
        if not lines or any(folder in lines[0] for folder in ours):
            continue
        code = f": {lines[1].strip()}" if len(lines) > 1 else ""
        return f", computed at {lines[0].strip()}{code}"
    return ""


@contextmanager
def _kept_statistics(model: Model) -> Iterator[None]:
    """Restore the running statistics of BatchNorm after a forward pass."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    buffers = [
        buffer
        for module in modules
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers()
    ]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, before in zip(buffers, saved, strict=True):
            buffer.data.copy_(before)
