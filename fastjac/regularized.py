"""A loss and the Jacobian penalty together, for less than the two cost apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastjac import checks, native, parallel, penalties
from fastjac.eager import eager
from fastjac.fewer_rows import fewer_rows
from fastjac.forward import Model, Origin, forward
from fastjac.graph import depends_on_others
from fastjac.linearization import Linearization
from fastjac.loss_sweep import Loss, loss_and_penalty
from fastjac.seeds import combination, cross_lipschitz
from fastjac.source import FusedRows, Rows
from fastjac.squares import Squares


class RegularizedLoss(NamedTuple):
    """``total = loss + lam * penalty``, a scalar to call backward() on, and its parts.

    ``loss``, ``penalty`` (scalars) and ``logits`` (N, K) are detached: for the log.
    """

    total: Tensor
    loss: Tensor
    penalty: Tensor
    logits: Tensor


@eager
def regularized_loss(
    model: Model,
    x: Tensor,
    y: Any,
    lam: float,
    *,
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy,
    penalty: str = "jacobian",
    reduction: str | None = None,
    class_weights: Tensor | None = None,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
    process_group: Any = None,
) -> RegularizedLoss:
    """Return a loss of the logits plus ``lam`` times a penalty.

    The same numbers and gradients, but for rounding, as::

        penalty, logits = fastjac.jacobian_penalty(model, x, return_logits=True)
        total = loss(logits, y) + lam * penalty

    or with `cross_lipschitz_penalty` in its place.

    In a network that is linear but for its activations' kinks and its biases (layers
    with ReLU, LeakyReLU or PReLU, max and average pools, dropout, residual sums) the
    sweep that computes the penalty's gradient gives the loss's as well, so that no
    backward pass is made for it. That needs float32 or float64 parameters on a CPU, no
    random projections, biases that are parameters and require grad, one process, and an
    ``x`` that does not require grad; "frobenius" needs the batch to fit one chunk too,
    and the Cross-Lipschitz penalty a loss that does not change if a number is added to
    all logits, as the cross-entropy. Otherwise the lines above are what is done, also
    where activations were changed so that autograd did not see it, which each sweep is
    checked for. Hooks on parameters run either way, hooks on tensors may not.

    Args:
        model: as in `jacobian_penalty`, and so are all arguments that are not below.
        x: (N, ...), floating point.
        y: what ``loss`` takes: for the cross-entropy (N,) integer labels.
        lam: weight of the penalty, at least 0.
        loss: ``(logits, y) -> scalar``.
        penalty: "jacobian" or "cross-lipschitz".
        reduction: "frobenius", "sum" or "mean", of the penalty; None for the default of
            `jacobian_penalty`, "frobenius", or `cross_lipschitz_penalty`, "sum".
        class_weights: as in `jacobian_penalty`.
        projections: as in `jacobian_penalty`.
        generator: as in `jacobian_penalty`.
        chunk: as in `jacobian_penalty`.
        backend: as in `jacobian_penalty`.
        batch_statistics: as in `jacobian_penalty`.
        process_group: as in `jacobian_penalty`; the loss is that of this process.

    Returns:
        `RegularizedLoss`.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as
            `jacobian_penalty`, and for a loss that is no scalar.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> step = fastjac.regularized_loss(model, x, y, 0.1)
        >>> step.total.backward()
        >>> bool(torch.isclose(step.total, step.loss + 0.1 * step.penalty))
        True
    """
    lam = _checked_weight(lam)
    checks.one_of("penalty", penalty, ("jacobian", "cross-lipschitz"))
    chosen: Callable[[Tensor], Tensor] = cross_lipschitz
    if penalty == "jacobian":
        chosen = partial(
            penalties.jacobian_seeds, class_weights, projections, generator
        )
    else:
        _refuse(class_weights=class_weights, projections=projections)
    if reduction is None:
        reduction = "frobenius" if penalty == "jacobian" else "sum"
    if reduction == "none":
        raise ValueError(
            "`reduction` must be 'frobenius', 'sum' or 'mean', as one number is added "
            "to the loss; got 'none'"
        )
    squares = Squares(
        chosen, reduction, chunk, backend, batch_statistics, process_group
    )
    logits, leaf = forward(model, x, shared=True, in_training=True)
    origin = Origin(model, leaf)
    with origin.gathered():
        rows, seeds = squares.rows(logits, leaf, origin), squares.seeds(logits)
        # A loss may work in place; the penalty is that of the logits as they were.
        value = _checked_loss(loss(logits.clone(), y))
        both = None
        if not x.requires_grad and lam > 0:
            both = _in_one_sweep(squares, rows, seeds, logits, leaf, value, lam)
        if both is None:
            norm = squares.reduced(rows, logits, seeds)
            both = value + lam * norm, norm
    total, norm = both
    return RegularizedLoss(total, value.detach(), norm.detach(), logits.detach())


def takes_one_sweep(linearization: Linearization) -> bool:
    """Whether a loss's gradient can come along with the penalty's, as far as is seen.

    Half precision is left out: the loss's own backward pass has another rounding.
    """
    logits = linearization.logits
    same = linearization.dtype == logits.dtype == linearization.x_dtype
    apart = linearization.samplewise  # a lift belongs to a sample
    return linearization.exact and apart and same and not native.waits(logits)


def _in_one_sweep(
    squares: Squares,
    rows: Rows,
    seeds: Tensor,
    logits: Tensor,
    x: Tensor,
    value: Tensor,
    lam: float,
) -> tuple[Tensor, Tensor] | None:
    """Return the total and the penalty; None where one sweep cannot give both."""
    if not torch.is_grad_enabled() or not isinstance(rows, FusedRows):
        return None
    linearization = rows.linearization
    if not takes_one_sweep(linearization) or parallel.initialised():
        return None
    if fewer_rows(linearization, seeds) is not seeds:
        return None
    if not value.requires_grad or depends_on_others(value, logits):
        return None
    (slopes,) = torch.autograd.grad(value, logits, retain_graph=True)
    combined = combination(seeds, slopes)
    if combined is None:
        return None
    found = Loss(value.detach(), combined, lam, squares.reduction)
    size = checks.check_chunk(squares.chunk)
    return loss_and_penalty(linearization, seeds, x.detach(), found, size)


def _refuse(**options: Any) -> None:
    """Raise for options that only the Jacobian penalty has."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is for penalty='jacobian'; leave it None, got {value!r}"
            )


def _checked_weight(lam: float) -> float:
    try:
        weight = float(lam)
    except (TypeError, ValueError):
        raise TypeError(f"`lam` must be a number; got {type(lam).__name__}") from None
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`lam` must be finite and at least 0; got {weight}")
    return weight


def _checked_loss(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`loss` must return a tensor of one number; got {type(value).__name__}"
        )
    if value.dim() != 0:
        raise ValueError(
            "`loss` must return one number, a tensor without dimensions; got shape "
            f"{tuple(value.shape)}. Take its mean or its sum"
        )
    return value
