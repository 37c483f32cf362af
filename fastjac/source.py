"""Rows of a Jacobian from the fused sweep or from the autograd reference.

Everything public asks `open_rows` for the rows of ``(logits, x)`` and does not care
which of the two it gets.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from fastjac import checks, reference
from fastjac.differentiable import (
    frobenius_norm,
    pull,
    squared_norms,
    total_squared_norm,
)
from fastjac.fewer_rows import fewer_rows
from fastjac.forward import Origin
from fastjac.graph import Unsupported
from fastjac.linearization import Linearization
from fastjac.linearize import batch_norm_in_training, linearize, refuse_autograd


class Rows(Protocol):
    """Rows pulled from seeds, (R, K) shared by all samples or (N, R, K).

    On a GPU norms are NaN where logits are not finite.
    """

    def pull(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """Return (N, R, *x.shape[1:]), differentiable in weights and seeds."""

    def squared_norms(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """Return ``sum_r ||row_r(x_i)||^2``, (N,), differentiable."""

    def total(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """Return the sum over samples of `squared_norms`, differentiable."""

    def frobenius(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """Return the root of `total`, with gradient 0 at 0."""


class FusedRows:
    """Rows by a sweep over the linearised network.

    The backward pass of `pull` and of `squared_norms` sweeps again.
    """

    def __init__(self, linearization: Linearization) -> None:
        self.linearization = linearization

    def pull(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        return pull(self.linearization, seeds, chunk)

    def squared_norms(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        seeds = fewer_rows(self.linearization, seeds)
        return squared_norms(self.linearization, seeds, chunk)

    def total(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        seeds = fewer_rows(self.linearization, seeds)
        return total_squared_norm(self.linearization, seeds, chunk)

    def frobenius(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        seeds = fewer_rows(self.linearization, seeds)
        return frobenius_norm(self.linearization, seeds, chunk)


class AutogradRows:
    """Rows by one backward pass each; ``chunk`` has no effect."""

    def __init__(self, logits: Tensor, x: Tensor) -> None:
        self.logits, self.x = logits, x

    def pull(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            return reference.pull(self.logits, self.x, seeds, create_graph=create_graph)

    def squared_norms(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        rows = self.pull(seeds).flatten(1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return checks.poison(rows.square().sum(1), self.logits)

    def total(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        return self.squared_norms(seeds).sum()

    def frobenius(self, seeds: Tensor, chunk: int | None = None) -> Tensor:
        """See `Rows`."""
        return root(self.total(seeds))


def root(total: Tensor) -> Tensor:
    """Return the square root, with gradient 0 at 0."""
    positive = total > 0
    return torch.where(positive, total, 1.0).sqrt() * positive


def open_rows(
    logits: Tensor,
    x: Tensor,
    backend: str,
    origin: Origin | None = None,
    batch_statistics: str = "constant",
) -> Rows:
    """Return the rows of ``logits`` with respect to ``x``.

    Args:
        logits: (N, K).
        x: (N, ...), which they were computed from.
        backend: "auto" falls back to autograd with one warning a kind of node, "fused"
            raises instead, "autograd" asks for the reference.
        origin: the model and input of the graph, if they are known: to say where an
            operation is, and to gather weights that are sharded.
        batch_statistics: "constant" takes those of a BatchNorm in training mode as
            constants, with one warning; "error" raises.

    Raises:
        NotImplementedError: with "fused", for a node without a rule; for a graph that
            neither way can compute.
        ValueError: ``x`` is detached from the logits; a BatchNorm in training mode, and
            ``batch_statistics="error"``.
    """
    checks.one_of("backend", backend, checks.BACKENDS)
    checks.one_of("batch_statistics", batch_statistics, checks.BATCH_STATISTICS)
    if batch_statistics == "error":
        _refuse_batch_statistics(logits, x, origin)
    if backend == "autograd":
        refuse_autograd(logits, x)
        return AutogradRows(logits, x)
    try:
        with nullcontext() if origin is None else origin.gathered():
            linearization = linearize(logits, x)
    except Unsupported as missing:
        return _fallback(logits, x, backend, missing, origin)
    if name := linearization.batch_statistics:
        checks.warn_once("batch statistics", lambda: constant(name, origin))
    if origin is not None:
        linearization.gathered = origin.gathered
    return FusedRows(linearization)


def _fallback(
    logits: Tensor,
    x: Tensor,
    backend: str,
    missing: Unsupported,
    origin: Origin | None,
) -> Rows:
    """Return autograd's rows, with a warning; raise where a fallback is an error."""

    def message() -> str:
        return (
            f"fastjac has no fused rule for {missing.name} ({missing.reason})"
            f"{_where(missing.name, origin)}"
        )

    if backend == "fused":
        raise NotImplementedError(
            f"{message()}. Replace that operation, or use backend='auto' to fall "
            "back to autograd"
        ) from None
    try:
        refuse_autograd(logits, x)
    except NotImplementedError as refused:
        raise NotImplementedError(
            f"{message()}, and autograd cannot take its place: {refused}"
        ) from None
    coupled = "" if batch_norm_in_training(logits, x) is None else f". {COUPLED}"
    checks.warn_once(
        f"fallback {missing.name} {missing.reason}",
        lambda: (
            f"{message()}; the whole penalty runs by autograd, {logits.shape[1]} "
            "backward passes, which is correct but slow. Replace that operation, or "
            f"pass backend='autograd' to choose this without a warning{coupled}"
        ),
    )
    return AutogradRows(logits, x)


#: What autograd makes of batch statistics.
COUPLED = (
    "Autograd differentiates the batch statistics of the BatchNorm in training mode "
    "too, so that the rows of a sample hold derivatives of all samples' logits"
)


def constant(name: str, origin: Origin | None) -> str:
    """Say what becomes of batch statistics; ``name`` is the node's."""
    return (
        f"{name}: BatchNorm in training mode couples the samples of a batch"
        f"{_where(name, origin)}; its batch statistics are taken as constants, in the "
        "Jacobian and in its gradient. Call .eval() on it to use its running "
        "statistics, or pass batch_statistics='error' to have this refused"
    )


def _refuse_batch_statistics(logits: Tensor, x: Tensor, origin: Origin | None) -> None:
    name = batch_norm_in_training(logits, x)
    if name is not None:
        raise ValueError(
            f"`batch_statistics` is 'error', and {name} is a BatchNorm in training mode"
            f"{_where(name, origin)}. Call .eval() on it to use its running "
            "statistics, or pass batch_statistics='constant' to take those of the "
            "batch as constants"
        )


def _where(name: str, origin: Origin | None) -> str:
    return "" if origin is None else origin.locate(name)
