"""The penalties: exact sums of squared rows of the input Jacobian.

Each is ``sum_i ||S J(x_i)||_F^2`` for its own seeds ``S``:

* the Jacobian penalty (eq. 4 of Jakubovitz and Giryes, ECCV 2018): ``S = I``;
* with class weights ``w``: ``S = diag(sqrt(w))``;
* R random projections: ``S = sqrt(K / R) Q``, ``Q`` with R orthonormal rows;
* the Cross-Lipschitz penalty (eq. 6): ``S^T S = 2 (K I - 1 1^T)``, K - 1 rows;
* the input-gradient penalty (eq. 5): one row, ``S = softmax(z) - y``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastjac import checks, seeds
from fastjac.eager import eager
from fastjac.forward import Model
from fastjac.squares import Squares


@eager
def jacobian_penalty(
    model: Model,
    x: Tensor,
    *,
    reduction: str = "frobenius",
    class_weights: Tensor | None = None,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
    process_group: Any = None,
    return_logits: bool = False,
) -> Any:
    """Return the norm of the input Jacobian of the logits, differentiable.

    With ``J(x_i)`` the (K, D) Jacobian of the logits at sample ``x_i``::

        P_i = ||J(x_i)||_F^2 = sum_k ||d z_k(x_i) / d x_i||_2^2
        "frobenius": sqrt(sum_i P_i)    "sum": sum_i P_i    "mean": mean_i P_i

    "frobenius" is eq. 4 of Jakubovitz and Giryes (ECCV 2018); its gradient at J = 0 is
    0. The value and the gradients of all weights are exact unless ``projections`` is
    given. Biases and frozen weights get none.

    Args:
        model: maps x to logits of shape (N, K). Of a compiled module the original is
            used; a DDP-wrapped one runs its own forward pass, in every process.
        x: (N, ...), floating point. It need not require grad.
        reduction: "frobenius", "sum", "mean", or "none" for the (N,) squared norms.
        class_weights: (K,), not negative; P_i becomes ``sum_k w_k ||J_k(x_i)||^2``.
        projections: estimate from this many (1..K) random orthonormal projections of
            each sample, unbiased for the squared norms, with a relative error of at
            most ``sqrt(2 / (projections * N))`` over a batch, and exact at K; None for
            the exact penalty.
        generator: random numbers for ``projections``.
        chunk: how many (sample, row) pairs to hold in memory at once. "auto", which
            None means too, chooses them for speed within `fastjac.memory_budget`, and
            if memory runs out goes on once with fewer, with a warning.
        backend: "auto", "fused" (an error instead of a fallback) or "autograd" (the
            reference).
        batch_statistics: what to do about BatchNorm in training mode, which couples
            the samples of a batch. "constant" takes the mean and variance of the batch
            as constants, in J and in its gradient, with one warning: the penalty is
            that of the network in eval mode with this batch's statistics. "error"
            raises. ``backend="autograd"`` differentiates them, in whole.
        process_group: processes that hold a batch together, each a part of it: a
            torch.distributed group, or "world" for all. The sum, the mean or the
            root is then of the whole batch and the same in each of them, and its
            gradient is right once it has been averaged over them, as
            DistributedDataParallel and FSDP do, for parts of any sizes. "none" stays
            with the samples of this process. None for this process alone.
        return_logits: return ``(penalty, logits)``, so that the cross-entropy can
            share the forward pass; the model's buffers, such as running statistics, are
            then updated as by one forward pass of its own. Otherwise they stay.

    Returns:
        A scalar, or (N,) for "none", in float32 or wider. With ``return_logits`` also
        the logits, (N, K).

    Raises:
        TypeError, ValueError: a bad argument; the message names it.
        RuntimeError: ``process_group`` without an initialised torch.distributed, or a
            call inside a transform of torch.func.
        NotImplementedError: ``backend="fused"`` and a layer without a rule.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> float(fastjac.jacobian_penalty(model, torch.randn(4, 3), reduction="mean"))
        6.0
    """
    chosen = partial(jacobian_seeds, class_weights, projections, generator)
    squares = Squares(
        chosen, reduction, chunk, backend, batch_statistics, process_group
    )
    return squares.of_model(model, x, return_logits)


@eager
def penalty_from_graph(
    logits: Tensor,
    x: Tensor,
    *,
    reduction: str = "frobenius",
    class_weights: Tensor | None = None,
    projections: int | None = None,
    generator: torch.Generator | None = None,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
    process_group: Any = None,
) -> Tensor:
    """Return `jacobian_penalty` of a forward pass that has been made already.

    The penalty then sees the very same forward as the cross-entropy: the same logits
    and the same dropout mask, and no second forward pass is paid for.

    Args:
        logits: (N, K), computed from ``x``, before backward() is called on them.
        x: (N, ...), required grad when ``logits`` were computed.
        reduction: as in `jacobian_penalty`.
        class_weights: as in `jacobian_penalty`.
        projections: as in `jacobian_penalty`.
        generator: as in `jacobian_penalty`.
        chunk: as in `jacobian_penalty`.
        backend: as in `jacobian_penalty`.
        batch_statistics: as in `jacobian_penalty`.
        process_group: as in `jacobian_penalty`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as
            `jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> logits = torch.stack([x.sum(1), 2 * x.sum(1)], dim=1)
        >>> float(fastjac.penalty_from_graph(logits, x, reduction="mean"))
        15.0
    """
    chosen = partial(jacobian_seeds, class_weights, projections, generator)
    squares = Squares(
        chosen, reduction, chunk, backend, batch_statistics, process_group
    )
    return squares.of_graph(logits, x)


@eager
def cross_lipschitz_penalty(
    model: Model,
    x: Tensor,
    *,
    reduction: str = "sum",
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
    process_group: Any = None,
    return_logits: bool = False,
) -> Any:
    """Return the Cross-Lipschitz penalty (eq. 6; Hein and Andriushchenko, 2017).

    Over ordered pairs of classes::

        P_i = sum_{j,k} ||J_j(x_i) - J_k(x_i)||^2
            = 2 K ||J(x_i)||_F^2 - 2 ||sum_k J_k(x_i)||^2

    The closed form takes K - 1 rows instead of K (K - 1) / 2 differences.

    Args:
        model: as in `jacobian_penalty`.
        x: (N, ...), floating point.
        reduction: "sum", "mean", "frobenius" (``sqrt(sum_i P_i)``) or "none".
        chunk: as in `jacobian_penalty`.
        backend: as in `jacobian_penalty`.
        batch_statistics: as in `jacobian_penalty`.
        process_group: as in `jacobian_penalty`.
        return_logits: as in `jacobian_penalty`.

    Returns:
        A scalar, or (N,) for "none"; with ``return_logits`` also the logits.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as
            `jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1., 0, 0], [0, 1, 0]]))
        >>> round(float(fastjac.cross_lipschitz_penalty(model, torch.ones(1, 3))), 5)
        4.0
    """
    squares = Squares(
        seeds.cross_lipschitz,
        reduction,
        chunk,
        backend,
        batch_statistics,
        process_group,
    )
    return squares.of_model(model, x, return_logits)


@eager
def input_gradient_penalty(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    reduction: str = "sum",
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
    process_group: Any = None,
    return_logits: bool = False,
) -> Any:
    """Return the squared norm of the cross-entropy's input gradient (eq. 5).

    ``P_i = ||d CE(z(x_i), y_i) / d x_i||^2
    = ||J(x_i)^T (softmax(z) - onehot(y_i))||^2``
    (Ross and Doshi-Velez, 2018): one row a sample, whose seed depends on the weights
    and carries gradient too.

    Args:
        model: as in `jacobian_penalty`.
        x: (N, ...), floating point.
        y: (N,) integer labels from 0 to K - 1.
        reduction: "sum", "mean", "frobenius" (``sqrt(sum_i P_i)``) or "none".
        chunk: as in `jacobian_penalty`.
        backend: as in `jacobian_penalty`.
        batch_statistics: as in `jacobian_penalty`.
        process_group: as in `jacobian_penalty`.
        return_logits: as in `jacobian_penalty`.

    Returns:
        A scalar, or (N,) for "none"; with ``return_logits`` also the logits.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as
            `jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> x, y = torch.zeros(1, 2), torch.tensor([0])
        >>> round(float(fastjac.input_gradient_penalty(model, x, y)), 5)
        0.5
    """
    squares = Squares(
        partial(seeds.input_gradient, y),
        reduction,
        chunk,
        backend,
        batch_statistics,
        process_group,
    )
    return squares.of_model(model, x, return_logits)


def jacobian_seeds(
    class_weights: Tensor | None,
    projections: int | None,
    generator: torch.Generator | None,
    logits: Tensor,
) -> Tensor:
    """Return the seeds that the arguments of `jacobian_penalty` ask for."""
    checks.check_projections(projections, logits.shape[1])
    weights = checks.check_class_weights(class_weights, logits)
    return seeds.jacobian(logits, weights, projections, generator)
