"""Where autograd's graph can be read: in eager mode, outside of every transform.

A function of fastjac reads the graph of a forward pass. ``torch.compile`` and
``torch.func`` replace that graph by their own while they trace, and inference mode
makes none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
T = TypeVar("T")


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """Make a public function run as written, whoever calls it.

    * In a function that is being compiled it is one graph break.
    * In inference mode its result carries no gradient, as the caller expects.
    * In a transform of torch.func it raises a RuntimeError that says what to do.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch._C._are_functorch_transforms_active():
            raise _transformed(function.__qualname__.removesuffix(".forward"))
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    # torch.compiler.disable would import the compiler, a second, with fastjac; this
    # waits for the first call. An optimizer's constructor does the same.
    return _disable_dynamo(wrapper)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled modules run their original code.

    Also those inside other modules, where torch has the means (2.6 and later).
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _transformed(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} was called inside a transform of torch.func (grad, vmap, jacrev...), "
        "which hides the autograd graph that fastjac reads. Call it outside and take "
        "its gradient by .backward() or torch.autograd.grad; reduction='none' gives "
        "one value a sample, fastjac.jacobian the Jacobian itself, and "
        "torch.func.functional_call alone, for other weights, is no transform"
    )
