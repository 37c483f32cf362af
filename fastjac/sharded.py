"""Weights that fully_shard (FSDP2) spreads over processes, gathered to be read.

After a module's forward pass FSDP frees the whole weights, although the autograd graph
still refers to them; gathering fills the same memory again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastjac import parallel


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Context in which all weights of a model are whole; collective if it is sharded.

    Raises:
        TypeError: the model is sharded by the older FullyShardedDataParallel.
    """
    # Unless this module was imported, nothing is sharded; importing it takes long.
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    together = fsdp is not None and parallel.initialised()
    if not together or not isinstance(model, nn.Module):
        yield
        return
    modules = list(model.modules())
    if any(isinstance(m, fsdp.FullyShardedDataParallel) for m in modules):
        raise TypeError(
            "`model` is sharded by FullyShardedDataParallel, whose weights cannot be "
            "read after the forward pass; use torch.distributed.fsdp.fully_shard or "
            "DistributedDataParallel"
        )
    kind = getattr(fsdp, "FSDPModule", ())
    freed = [m for m in modules if isinstance(m, kind) and _is_freed(m, kind)]
    for module in freed:
        module.unshard()
    try:
        yield
    finally:
        for module in freed:
            module.reshard()


def _is_freed(module: nn.Module, kind: Any) -> bool:
    """Whether a module holds only its part of its weights at the moment."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in module.parameters(recurse=False)):
        return True
    inside = (child for child in module.children() if not isinstance(child, kind))
    return any(_is_freed(child, kind) for child in inside)
