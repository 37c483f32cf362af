"""What a post-processing step costs by method: fused, and by plain autograd."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastjac.data import ImageData
from fastjac.harden import Objective
from fastjac.harden.modes import training

if TYPE_CHECKING:
    from fastjac.paper.work import Work

REPEATS = 3


def pairs(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6 as it is written: a gradient for each pair of classes, by autograd."""
    x = x.detach().requires_grad_()
    logits = model(x)
    total = logits.new_zeros(())
    for j, k in itertools.combinations(range(logits.shape[1]), 2):
        difference = (logits[:, j] - logits[:, k]).sum()
        (row,) = torch.autograd.grad(difference, x, create_graph=True)
        total = total + 2 * row.square().sum()
    return total / len(x), logits


def objectives() -> dict[str, Objective]:
    """The objective of each method's step, by a name that says how it is computed."""

    def named(name: str, **options: Any) -> Objective:
        return Objective(name, 0.01, options)

    mean = {"reduction": "mean"}
    return {
        "cross-entropy alone": Objective(),
        "adversarial training, half of the inputs": Objective(
            adversarial=0.5, bounds=(0.0, 1.0)
        ),
        "input gradient, fused": named("input-gradient", **mean),
        "input gradient, autograd": named("input-gradient", **mean, backend="autograd"),
        "one random projection, fused": named("jacobian", projections=1),
        "one random projection, autograd": named(
            "jacobian", projections=1, backend="autograd"
        ),
        "Jacobian, fused": named("jacobian"),
        "Jacobian, autograd": named("jacobian", backend="autograd"),
        "Cross-Lipschitz closed form, fused": named("cross-lipschitz", **mean),
        "Cross-Lipschitz closed form, autograd": named(
            "cross-lipschitz", **mean, backend="autograd"
        ),
        "Cross-Lipschitz by pairs, autograd": Objective(pairs, 0.01),
    }


def measure(
    network: nn.Module, images: ImageData, batch: int, work: Work
) -> dict[str, Any]:
    """Seconds of a step of each method, the median of a few after one to warm up."""
    device = next(network.parameters()).device
    x, y = (tensor[:batch].to(device) for tensor in images.train.tensors)
    found = []
    methods = list(objectives().items())
    for name, objective in work.watch(methods, "timing steps"):
        with training(network, freeze_batchnorm=True):
            seconds = _seconds(network, objective, x, y)
        found.append({"method": name, "seconds_per_step": round(seconds, 5)})
    return {"costs": found, "batch": batch, "threads": torch.get_num_threads()}


def _seconds(network: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> float:
    torch.manual_seed(0)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        objective(network, x, y).loss.backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    step()
    return statistics.median(_timed(step) for _ in range(REPEATS))


def _timed(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin
