"""Sums over the samples of several processes.

With W processes, process r holding n_r of the N samples of a batch, a penalty of the
whole batch is a function of ``P = sum_r sum_(i in r) P_i``. One collective gives every
process P and N, and so the same value. The backward pass needs none: data-parallel
training averages the processes' gradients,

    (1 / W) sum_r g_r,   and   dV/dw = V'(P) sum_r dP_r/dw,

so process r contributes ``g_r = W V'(P) dP_r/dw``, whatever its share n_r.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: A ``torch.distributed.ProcessGroup``, or "world" for all processes.
Group = Any


def initialised() -> bool:
    """Whether this process is one of a torch.distributed job."""
    return dist.is_available() and dist.is_initialized()


def resolved(process_group: Group) -> Group:
    """Return the process group that an argument names; None for None.

    Raises:
        RuntimeError: torch.distributed is not there or not initialised.
        TypeError: not a process group.
        ValueError: another word than "world", or a group that excludes this process.
    """
    if process_group is None:
        return None
    named = isinstance(process_group, str)
    if named and process_group != "world":
        raise ValueError(
            "`process_group` must be a torch.distributed process group, 'world' for "
            f"all processes, or None; got {process_group!r}"
        )
    if not dist.is_available():
        raise RuntimeError(
            "`process_group` needs torch.distributed, which this build of torch lacks; "
            "leave it None, or install a build that has it"
        )
    if not dist.is_initialized():
        raise RuntimeError(
            f"`process_group` (={process_group!r}) was given, but torch.distributed is "
            "not initialised. Start the script with torchrun and call "
            "torch.distributed.init_process_group() first, or leave process_group None"
        )
    if named:
        return dist.group.WORLD
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "`process_group` does not include this process: pass the group that it is "
            "a member of"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "`process_group` must be a torch.distributed process group, 'world' or "
            f"None; got {type(process_group).__name__}. Of a one-dimensional "
            "DeviceMesh pass mesh.get_group()"
        )
    return process_group


def sums(total: Tensor, samples: int, group: Group) -> tuple[Tensor, Tensor]:
    """Return a total and a number of samples, summed over the processes of a group.

    Args:
        total: a scalar of this process, floating point.
        samples: how many samples of this process it is the total of.
        group: from `resolved`, not None.

    Returns:
        Two scalars, the same in every process. The first is differentiable: see above.
    """
    return _Sums.apply(total, samples, group)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, total: Tensor, samples: int, group: Group
    ) -> tuple[Tensor, Tensor]:
        ctx.processes = dist.get_world_size(group)
        both = torch.stack([total.double(), total.new_tensor(samples).double()])
        dist.all_reduce(both, group=group)
        count = both[1].to(total.dtype)
        ctx.mark_non_differentiable(count)
        return both[0].to(total.dtype), count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.processes, None, None


def tied(penalty: Tensor, logits: Tensor) -> Tensor:
    """Return a penalty whose backward pass also visits the graph of the logits.

    DistributedDataParallel and FSDP exchange gradients when the backward pass comes by
    their hooks, which are there; a fused penalty hands its gradients to the weights
    directly, and no gradient to biases. Without process groups nothing is done.
    """
    if not initialised():
        return penalty
    if not (penalty.requires_grad and logits.requires_grad):
        return penalty
    return _Tied.apply(penalty, logits)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, penalty: Tensor, logits: Tensor) -> Tensor:
        ctx.shape = logits.shape
        ctx.options = {"dtype": logits.dtype, "device": logits.device}
        return penalty.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return upstream, torch.zeros(ctx.shape, **ctx.options)
