"""The ways to a penalty that are compared, as data, and the step that is timed.

Every Jacobian penalty is ``mean_i ||J(x_i)||_F^2`` and comes with the logits, every
Cross-Lipschitz one ``mean_i`` of eq. 6. A step is forward, cross-entropy, penalty and
backward: what a user pays for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastjac

LAMBDA = 0.01

Penalty = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""``(model, x) -> (penalty, logits)``."""

Total = Callable[[nn.Module, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""``(model, x, y, lam) -> (cross-entropy + lam * penalty, penalty)``."""


def forward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    return model(leaf), leaf


def loop_rows(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(K, N, ...) rows by one backward pass a class, and the logits."""
    logits, leaf = forward(model, x)
    rows = [
        torch.autograd.grad(logits[:, k].sum(), leaf, create_graph=True)[0]
        for k in range(logits.shape[1])
    ]
    return torch.stack(rows), logits


def plain(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """No penalty: the price of the step itself."""
    return x.new_zeros(()), model(x)


def autograd_loop(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One backward pass a class, squares summed as they come."""
    logits, leaf = forward(model, x)
    total = x.new_zeros(())
    for k in range(logits.shape[1]):
        (row,) = torch.autograd.grad(logits[:, k].sum(), leaf, create_graph=True)
        total = total + row.square().sum()
    return total / len(x), logits


def grads_batched(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """All classes in one vectorised backward pass."""
    logits, leaf = forward(model, x)
    seeds = torch.eye(logits.shape[1], dtype=x.dtype, device=x.device).unsqueeze(1)
    (rows,) = torch.autograd.grad(
        logits,
        leaf,
        seeds.expand(-1, *logits.shape),
        create_graph=True,
        is_grads_batched=True,
    )
    return rows.square().sum() / len(x), logits


def jacrev(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.func.jacrev of the logits summed over the batch."""

    def summed(u: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(u)
        return logits.sum(0), logits

    rows, logits = torch.func.jacrev(summed, has_aux=True)(x)
    return rows.square().sum() / len(x), logits


_compiled: dict[int, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}


def compiled_jacrev(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same through torch.compile, penalty and all, compiled once a model."""
    if id(model) not in _compiled:
        _compiled[id(model)] = torch.compile(lambda u: jacrev(model, u))
    return _compiled[id(model)](x)


def one_projection(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate of Hoffman et al. (2019) with n = 1, as in their package."""
    logits, leaf = forward(model, x)
    classes = logits.shape[1]
    v = F.normalize(torch.randn(logits.shape), dim=1).to(x)
    (row,) = torch.autograd.grad(logits, leaf, v, create_graph=True)
    return classes * row.square().sum() / len(x), logits


def fused(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """fastjac, exact."""
    return fastjac.jacobian_penalty(
        model, x, reduction="mean", backend="fused", return_logits=True
    )


def pairs(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6 as it is written: a gradient for each of the K (K - 1) / 2 pairs."""
    logits, leaf = forward(model, x)
    total = x.new_zeros(())
    for j, k in itertools.combinations(range(logits.shape[1]), 2):
        difference = (logits[:, j] - logits[:, k]).sum()
        (row,) = torch.autograd.grad(difference, leaf, create_graph=True)
        total = total + 2 * row.square().sum()
    return total / len(x), logits


def closed_form(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """2 K ||J||^2 - 2 ||sum_k J_k||^2 over rows by autograd."""
    rows, logits = loop_rows(model, x)
    total = 2 * len(rows) * rows.square().sum() - 2 * rows.sum(0).square().sum()
    return total / len(x), logits


def fused_cross_lipschitz(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """fastjac's Cross-Lipschitz penalty, exact."""
    return fastjac.cross_lipschitz_penalty(
        model, x, reduction="mean", backend="fused", return_logits=True
    )


def added(penalty: Penalty) -> Total:
    """The cross-entropy and a penalty, one after the other."""

    def total(
        model: nn.Module, x: Tensor, y: Tensor, lam: float
    ) -> tuple[Tensor, Tensor]:
        value, logits = penalty(model, x)
        return F.cross_entropy(logits, y) + lam * value, value

    return total


def with_loss(
    penalty: str, model: nn.Module, x: Tensor, y: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """fastjac, exact, with the cross-entropy's gradient from the same sweep."""
    step = fastjac.regularized_loss(
        model, x, y, lam, penalty=penalty, reduction="mean", backend="fused"
    )
    return step.total, step.penalty


@dataclass(frozen=True)
class Contestant:
    """A way to loss and penalty, and the one whose float64 result it must have."""

    total: Total
    reference: Total


def contestant(penalty: Penalty, reference: Penalty) -> Contestant:
    return Contestant(added(penalty), added(reference))


JACOBIAN: dict[str, Contestant] = {
    "plain step": contestant(plain, plain),
    "autograd loop": contestant(autograd_loop, autograd_loop),
    "is_grads_batched": contestant(grads_batched, autograd_loop),
    "jacrev": contestant(jacrev, autograd_loop),
    "one projection": contestant(one_projection, one_projection),
    "fused": contestant(fused, autograd_loop),
    "fused with loss": Contestant(partial(with_loss, "jacobian"), added(autograd_loop)),
}
#: On a GPU, where compiling takes launches away, though minutes first, and where the
#: loss has a backward pass of its own.
ON_GPU: dict[str, Contestant] = {
    **{name: each for name, each in JACOBIAN.items() if name != "fused with loss"},
    "compiled jacrev": contestant(compiled_jacrev, autograd_loop),
}
CROSS_LIPSCHITZ: dict[str, Contestant] = {
    "K^2 loop": contestant(pairs, pairs),
    "closed form": contestant(closed_form, pairs),
    "fused": contestant(fused_cross_lipschitz, pairs),
    "fused with loss": Contestant(partial(with_loss, "cross-lipschitz"), added(pairs)),
}
GROUPS = {"jacobian": JACOBIAN, "cross-lipschitz": CROSS_LIPSCHITZ}


def step(total: Total, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Forward, cross-entropy, penalty, backward; returns the penalty's value."""
    for parameter in model.parameters():
        parameter.grad = None
    loss, value = total(model, x, y, LAMBDA)
    loss.backward()
    return value.detach()
