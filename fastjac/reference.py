"""Rows of the input Jacobian by plain autograd: the oracle and the fallback.

For logits ``z`` of shape (N, K) computed from an input ``x``, a row is the gradient

    row_r(x_i) = d (sum_k S[r, k] z_k(x_i)) / d x_i

and ``R`` of them take ``R`` backward passes. With ``create_graph=True`` the rows are
differentiable by double backward. Nothing here is clever: it is what the fused code
must agree with, and what runs when a model contains a layer without a rule.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pull(
    logits: Tensor, x: Tensor, seeds: Tensor, *, create_graph: bool = False
) -> Tensor:
    """Pull seeds down to the input, one backward pass a row.

    Args:
        logits: (N, K), connected to ``x`` in the autograd graph.
        x: (N, ...), requires grad.
        seeds: (R, K) shared by all samples, or (N, R, K).
        create_graph: make the rows differentiable with respect to the weights and
            the seeds.

    Returns:
        Rows of shape (N, R, ``*x.shape[1:]``).
    """
    per_sample = seeds.expand(logits.shape[0], *seeds.shape[-2:])
    rows = []
    for seed in per_sample.unbind(1):
        (row,) = torch.autograd.grad(
            logits,
            x,
            grad_outputs=seed.to(logits.dtype),
            create_graph=create_graph,
            retain_graph=True,
            allow_unused=True,
        )
        rows.append(torch.zeros_like(x) if row is None else row)
    return torch.stack(rows, dim=1)
