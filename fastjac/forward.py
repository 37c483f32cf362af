"""The forward pass of a model that the user handed over, without leaving a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastjac import checks
from fastjac.graph import find_node, sequence_number

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
    """Return a function that says where in the model a node came from.

    It names the module and the line of code. It runs the forward pass once more,
    recording stack traces; random numbers and BatchNorm statistics are put back. It is
    called only before a fallback.
    """

    def locate(name: str) -> str:
        with (
            torch.random.fork_rng(enabled=True),
            _kept_statistics(model),
            torch.enable_grad(),
            torch.autograd.set_detect_anomaly(True, check_nan=False),
            _watched(unwrapped(model)) as spans,
        ):
            leaf = x.detach().requires_grad_()
            logits = unwrapped(model)(leaf)
            node = find_node(logits, name)
        if node is None:
            return ""
        return _module_of(node, spans) + _user_line(node.metadata)

    return locate


@dataclass(frozen=True)
class _Span:
    """The sequence numbers of the autograd nodes that a module's forward made."""

    module: str
    start: int
    stop: int


@contextmanager
def _watched(model: Model) -> Iterator[list[_Span]]:
    """Note which nodes each module makes, by hooks that are removed afterwards."""
    spans: list[_Span] = []
    starts: dict[nn.Module, list[int]] = {}
    handles = []
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        label = f"module {name}" if name else "the model itself"
        label += f" ({type(module).__name__})"

        def enter(module: nn.Module, _: Any) -> None:
            starts.setdefault(module, []).append(sequence_number())

        def leave(module: nn.Module, _: Any, __: Any, label: str = label) -> None:
            spans.append(_Span(label, starts[module].pop(), sequence_number()))

        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


def _module_of(node: Any, spans: list[_Span]) -> str:
    """Name the innermost module that made a node."""
    number = node._sequence_nr()
    around = [span for span in spans if span.start <= number < span.stop]
    if not around:
        return ""
    return f", in {min(around, key=lambda span: span.stop - span.start).module}"


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
