"""The penalties of the rows, as what `fastjac.harden` takes for ``penalty``.

Each is ``(penalty, options)``: one that `harden` knows by name, or a function ``(model,
x, y) -> (penalty, logits)``. For all but the squared ones, the value is a norm over the
batch, like eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import fastjac

PROJECTIONS = 10
"""Random projections for layers with many outputs: as many as there are classes."""


def first_sample(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """||J(x_1)||_F, of the first sample of the batch only.

    The released code flattens the logits of the batch to one vector and differentiates
    its first K entries, which are those of the first sample.
    """
    return fastjac.jacobian_penalty(model, x[:1]), model(x)


def spectral(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(sum_i sigma_1(J(x_i))^2), the largest singular values instead of all."""
    return fastjac.spectral_norm(model, x).norm(), model(x)


def layer_before(model: nn.Sequential, last: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of the Jacobian of the inputs of the ``last``-th linear layer from the end.

    Their number is large, so the norm is estimated from `PROJECTIONS` random
    projections (unbiased for its square).
    """
    layers = list(model)
    linear = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    at = linear[-last]
    x = x.detach().requires_grad_()
    features = nn.Sequential(*layers[:at])(x)
    penalty = fastjac.penalty_from_graph(features, x, projections=PROJECTIONS)
    return penalty, nn.Sequential(*layers[at:])(features)


def layer_1(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of the Jacobian of layer L-1, the last hidden one."""
    return layer_before(model, 1, x)


def layer_2(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of the Jacobian of layer L-2, the one before."""
    return layer_before(model, 2, x)


PENALTIES: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "jacobian": ("jacobian", {}),
    "cross-lipschitz": ("cross-lipschitz", {"reduction": "mean"}),
    "input-gradient": ("input-gradient", {"reduction": "mean"}),
    "first-sample": (first_sample, {}),
    "projection": ("jacobian", {"projections": 1}),
    "spectral": (spectral, {}),
    "layer-1": (layer_1, {}),
    "layer-2": (layer_2, {}),
}
"""What each name in a row stands for."""

FORMULAS = {
    "jacobian": "lam * sqrt(sum_i ||J(x_i)||_F^2), eq. 4",
    "cross-lipschitz": "lam * mean_i sum_jk ||J_j(x_i) - J_k(x_i)||^2, eq. 6",
    "input-gradient": "lam * mean_i ||grad CE(x_i)||^2, eq. 5",
    "first-sample": "lam * ||J(x_1)||_F",
    "projection": "lam * sqrt(sum_i K ||v^T J(x_i)||^2), v a random unit vector",
    "spectral": "lam * sqrt(sum_i sigma_1(J(x_i))^2)",
    "layer-1": "lam * norm of the Jacobian of the last hidden layer",
    "layer-2": "lam * norm of the Jacobian of the layer before it",
}
"""The term that each adds to the mean cross-entropy, for the report."""
