"""The forward pass of a model that the user handed over, without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from fastjac import checks, parallel, sharded
from fastjac.eager import uncompiled
from fastjac.graph import find_node, sequence_number
from fastjac.max_pools import native_max_pools

Model = Callable[[Tensor], Tensor]

#: Elements of a batch from which on faster max pools save more time than it takes to
#: see every operator of a forward pass, some 15 us each.
WORTH_SEEING = 4096


def forward(
    model: Model, x: Tensor, *, shared: bool = False, in_training: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the model with gradients enabled; return logits and the x they depend on.

    ``x`` itself is used if it requires grad, else a detached copy that does, so that
    neither ``x.requires_grad`` nor ``x.grad`` changes.

    Args:
        model: see `unwrapped`.
        x: (N, ...).
        shared: the pass is the caller's too, who makes none of his own; otherwise the
            model's buffers are put back.
        in_training: a gradient may be wanted of what is computed from the logits, so a
            DistributedDataParallel model runs its own forward pass: only after that
            does it exchange gradients.
    """
    checks.check_input(x)
    in_training = in_training and torch.is_grad_enabled()
    kept = nullcontext() if shared else _kept_buffers(model)
    with torch.enable_grad(), uncompiled(), kept, _faster_pools(x):
        if x.is_inference():
            x = x.clone()
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        logits = unwrapped(model, keep_ddp=in_training)(leaf)
    checks.check_logits(logits, leaf)
    return logits, leaf


def _faster_pools(x: Tensor) -> AbstractContextManager[object]:
    """Return a context for the max pools of images on a CPU, in a single process.

    Several processes' forward passes are more than operators, so they are left alone.
    """
    large = x.numel() >= WORTH_SEEING
    if large and x.is_cpu and x.dim() in (3, 4) and not parallel.initialised():
        return native_max_pools()
    return nullcontext()


def unwrapped(model: Model, *, keep_ddp: bool = False) -> Model:
    """Look into torch.compile and (Distributed)DataParallel wrappers.

    A compiled graph's nodes cannot be read. DDP's own forward pass sends messages to
    other processes, and so is for training only.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None:
            inner = getattr(model, "_torchdynamo_orig_callable", None)
        if inner is None and isinstance(model, nn.DataParallel):
            inner = model.module
        if inner is None and not keep_ddp and isinstance(model, DDP):
            inner = model.module
        if inner is None:
            return model
        model = inner


@dataclass(frozen=True)
class Origin:
    """The model and the input that a graph came from."""

    model: Model
    x: Tensor

    def gathered(self) -> AbstractContextManager[None]:
        """Return a context in which the model's weights are in memory."""
        return sharded.gathered(self.model)

    def locate(self, name: str) -> str:
        """Name the module and the line of code that a node of this name came from.

        This runs the forward pass once more, recording stack traces; random numbers and
        BatchNorm statistics are put back. It is called only before a fallback.
        """
        model = unwrapped(self.model)
        with (
            torch.random.fork_rng(enabled=True),
            _kept_buffers(model),
            torch.enable_grad(),
            uncompiled(),
            torch.autograd.set_detect_anomaly(True, check_nan=False),
            _watched(model) as spans,
        ):
            leaf = self.x.detach().requires_grad_()
            logits = model(leaf)
            node = find_node(logits, name)
        if node is None:
            return ""
        return _module_of(node, spans) + _user_line(node.metadata)


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
def _kept_buffers(model: Model) -> Iterator[None]:
    """Let a forward pass in training mode update copies of the model's buffers.

    Running statistics are such buffers. The originals are never touched, and what the
    autograd graph holds of the copies stays as the forward pass left it.
    """
    inner = unwrapped(model)
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    originals = [
        (module._buffers, name, buffer)
        for module in modules
        if module.training
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    copies = {buffer: buffer.clone() for _, _, buffer in originals}
    try:
        for buffers, name, buffer in originals:
            buffers[name] = copies[buffer]
        yield
    finally:
        for buffers, name, buffer in originals:
            buffers[name] = buffer
