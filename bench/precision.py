"""Error of the penalty and its gradient in each precision, against float64.

python bench/precision.py              # a few minutes
python bench/precision.py digits

The last column is the same gradient by plain autograd in the same precision: what the
forward pass in that precision costs, whoever differentiates it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from measure import relative
from nets import NETS
from torch import Tensor, nn

import fastjac

SAMPLES = 8


def autocast(dtype: torch.dtype) -> Callable[[], AbstractContextManager[object]]:
    return lambda: torch.autocast("cpu", dtype=dtype)


@dataclass(frozen=True)
class Mode:
    """How a model is run."""

    dtype: torch.dtype = torch.float32
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    memory_format: torch.memory_format = torch.contiguous_format


MODES = {
    "float64": Mode(torch.float64),
    "float32": Mode(),
    "float32, channels last": Mode(memory_format=torch.channels_last),
    "bf16 autocast": Mode(context=autocast(torch.bfloat16)),
    "fp16 autocast": Mode(context=autocast(torch.float16)),
    "bf16 model": Mode(torch.bfloat16),
    "fp16 model": Mode(torch.float16),
}


def penalty(
    model: nn.Module, x: Tensor, mode: Mode, backend: str
) -> tuple[Tensor, Tensor]:
    """The value and the gradient in all parameters as one vector, in float64."""
    model = copy.deepcopy(model).to(mode.dtype)
    x = x.to(mode.dtype)
    if x.dim() == 4:
        model = model.to(memory_format=mode.memory_format)
        x = x.to(memory_format=mode.memory_format)
    with mode.context():
        value = fastjac.jacobian_penalty(model, x, reduction="mean", backend=backend)
    value.backward()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()
    ]
    return value.detach().double(), torch.cat([g.double().flatten() for g in gradients])


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", help=", ".join(NETS))
    print("| network | precision | value | gradient | gradient by autograd |")
    print("| --- | --- | --- | --- | --- |")
    for net in parser.parse_args().nets or ["digits", "mnist", "cifar", "resnet18"]:
        model, (x, _) = NETS[net].build(), NETS[net].batch(SAMPLES)
        value, gradient = penalty(model, x, MODES["float64"], "autograd")
        for name, mode in MODES.items():
            got, found = penalty(model, x, mode, "fused")
            _, plain = penalty(model, x, mode, "autograd")
            errors = [
                relative(got, value),
                relative(found, gradient),
                relative(plain, gradient),
            ]
            cells = " | ".join(f"{error:.1e}" for error in errors)
            print(f"| {net} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
