"""The input Jacobian itself, and norms of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastjac import checks, parallel, seeds
from fastjac.eager import eager
from fastjac.forward import Model, Origin, forward
from fastjac.precision import without_autocast
from fastjac.source import Rows, open_rows


@eager
def jacobian(
    model: Model,
    x: Tensor,
    *,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
) -> Tensor:
    """Return the Jacobian of the logits at each sample, differentiable in the weights.

    Args:
        model: as in `fastjac.jacobian_penalty`, and so are x, chunk and backend.
        x: (N, ...), floating point.
        chunk: how many (sample, row) pairs to hold at once, or "auto".
        backend: "auto", "fused" or "autograd".
        batch_statistics: as in `fastjac.jacobian_penalty`, "constant" or "error".

    Returns:
        (N, K, *x.shape[1:]): entry [i, k] is ``d z_k(x_i) / d x_i``.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fastjac.jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2)
        >>> J = fastjac.jacobian(model, torch.randn(4, 3))
        >>> bool((J == model.weight).all()), tuple(J.shape)
        (True, (4, 2, 3))
    """
    size = checks.check_chunk(chunk)
    opened = _rows(model, x, backend, batch_statistics, in_training=True)
    with opened as (rows, logits):
        return parallel.tied(rows.pull(seeds.jacobian(logits), size), logits)


@eager
def jacobian_norm(
    model: Model,
    x: Tensor,
    *,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
) -> Tensor:
    """Return the Frobenius norm of the Jacobian at each sample, ``||J(x_i)||_F``.

    Args:
        model: as in `fastjac.jacobian_penalty`, and so are x, chunk and backend.
        x: (N, ...), floating point.
        chunk: how many (sample, row) pairs to hold at once, or "auto".
        backend: "auto", "fused" or "autograd".
        batch_statistics: as in `fastjac.jacobian_penalty`, "constant" or "error".

    Returns:
        (N,), a measurement: no gradient is computed and none flows. Use
        ``jacobian_penalty(reduction="none")`` for differentiable squared norms.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fastjac.jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(4, 1)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> fastjac.jacobian_norm(model, torch.zeros(2, 4)).tolist()
        [6.0, 6.0]
    """
    size = checks.check_chunk(chunk)
    opened = _rows(model, x, backend, batch_statistics)
    with torch.no_grad(), opened as (rows, logits):
        squares = rows.squared_norms(seeds.jacobian(logits), size)
        return squares.sqrt()


@eager
def spectral_norm(
    model: Model,
    x: Tensor,
    *,
    chunk: checks.ChunkSize = None,
    backend: str = "auto",
    batch_statistics: str = "constant",
) -> Tensor:
    """Return the largest singular value of the Jacobian at each sample.

    It is exact, not a power iteration: the square root of the largest eigenvalue of the
    K x K matrix ``J J^T``. Its gradient with respect to the weights is exact where the
    largest singular value is simple.

    Args:
        model: as in `fastjac.jacobian_penalty`.
        x: (N, ...), floating point.
        chunk: how many (sample, row) pairs to hold at once, or "auto".
        backend: "auto", "fused" or "autograd".
        batch_statistics: as in `fastjac.jacobian_penalty`, "constant" or "error".

    Returns:
        (N,), differentiable.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fastjac.jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[3., 0.], [0., 2.]]))
        >>> fastjac.spectral_norm(model, torch.zeros(1, 2)).tolist()
        [3.0]
    """
    size = checks.check_chunk(chunk)
    opened = _rows(model, x, backend, batch_statistics, in_training=True)
    with opened as (rows, logits):
        with torch.no_grad(), without_autocast(logits.device):
            pulled = rows.pull(seeds.jacobian(logits), size).flatten(2)
            pulled = pulled.to(torch.promote_types(pulled.dtype, torch.float32))
            _, vectors = torch.linalg.eigh(pulled @ pulled.mT)
            top = vectors[..., -1].unsqueeze(1)
        # d sigma = d ||u^T J|| at the left singular vector u, whose own change drops
        # out.
        squares = parallel.tied(rows.squared_norms(top, size), logits)
    positive = squares > 0
    return torch.where(positive, squares, 1.0).sqrt() * positive


@contextmanager
def _rows(
    model: Model,
    x: Tensor,
    backend: str,
    batch_statistics: str,
    *,
    in_training: bool = False,
) -> Iterator[tuple[Rows, Tensor]]:
    """Give the rows of a model at x, and its logits, while its weights are there."""
    logits, leaf = forward(model, x, in_training=in_training)
    origin = Origin(model, leaf)
    with origin.gathered():
        yield open_rows(logits, leaf, backend, origin, batch_statistics), logits
