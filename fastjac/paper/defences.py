"""The penalties of the rows, as what `fastjac.harden` takes for ``penalty``.

Each is a function ``(model, x, y) -> (penalty, logits)``. Norms
over the batch are divided by the root of its size, as the cross-entropy is a mean, so
that a lambda means the same at every batch size: the lambda of eq. 4 as it is printed
is the one here over sqrt(N).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias

from torch import Tensor, nn

import fastjac

Penalty: TypeAlias = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]

PROJECTIONS = 10
"""Random projections for layers with many outputs: as many as there are classes."""


def jacobian(
    model: nn.Module, x: Tensor, y: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """sqrt(mean_i ||J(x_i)||_F^2), which is eq. 4 over sqrt(N)."""
    penalty, logits = fastjac.jacobian_penalty(model, x, return_logits=True, **options)
    return penalty / len(x) ** 0.5, logits


def cross_lipschitz(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 6, the mean over the batch."""
    return fastjac.cross_lipschitz_penalty(
        model, x, reduction="mean", return_logits=True
    )


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 5, the mean over the batch."""
    return fastjac.input_gradient_penalty(
        model, x, y, reduction="mean", return_logits=True
    )


def projection(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same, estimated from one random projection."""
    return jacobian(model, x, y, projections=1)


def first_sample(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """||J(x_1)||_F, of the first sample of the batch only.

    The released code flattens the logits of the batch to one vector and differentiates
    its first K entries, which are those of the first sample.
    """
    return fastjac.jacobian_penalty(model, x[:1]), model(x)


def spectral(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(mean_i sigma_1(J(x_i))^2), the largest singular values instead of all."""
    return fastjac.spectral_norm(model, x).square().mean().sqrt(), model(x)


def layer_before(model: nn.Module, last: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of the Jacobian of the inputs of the ``last``-th linear layer from the end.

    Their number is large, so the norm is estimated from `PROJECTIONS` random
    projections (unbiased for its square).
    """
    layers = list(model.children())
    linear = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    at = linear[-last]
    x = x.detach().requires_grad_()
    features = nn.Sequential(*layers[:at])(x)
    penalty = fastjac.penalty_from_graph(features, x, projections=PROJECTIONS)
    return penalty / len(x) ** 0.5, nn.Sequential(*layers[at:])(features)


def layer_1(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of the Jacobian of layer L-1, the last hidden one."""
    return layer_before(model, 1, x)


def layer_2(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of the Jacobian of layer L-2, the one before."""
    return layer_before(model, 2, x)


def of_first(share: float, penalty: Penalty) -> Penalty:
    """A penalty of the first images of a batch, with the logits of all of them.

    Args:
        share: of the batch; at least one image of it is penalised.
        penalty: of those images.
    """

    @wraps(penalty)
    def of_part(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        count = max(1, round(share * len(x)))
        if count >= len(x):
            return penalty(model, x, y)
        return penalty(model, x[:count], y[:count])[0], model(x)

    return of_part


PENALTIES: Mapping[str, Penalty] = {
    "jacobian": jacobian,
    "cross-lipschitz": cross_lipschitz,
    "input-gradient": input_gradient,
    "first-sample": first_sample,
    "projection": projection,
    "spectral": spectral,
    "layer-1": layer_1,
    "layer-2": layer_2,
}
"""What each name in a row stands for."""

ONE_ROW = ("input-gradient", "projection")
"""Those that take one row an image, so that all images of a batch can be afforded."""

FORMULAS = {
    "jacobian": "lam * sqrt(mean_i ||J(x_i)||_F^2), eq. 4 over sqrt(N)",
    "cross-lipschitz": "lam * mean_i sum_jk ||J_j(x_i) - J_k(x_i)||^2, eq. 6",
    "input-gradient": "lam * mean_i ||grad CE(x_i)||^2, eq. 5",
    "first-sample": "lam * ||J(x_1)||_F",
    "projection": "lam * sqrt(mean_i K ||v^T J(x_i)||^2), v a random unit vector",
    "spectral": "lam * sqrt(mean_i sigma_1(J(x_i))^2)",
    "layer-1": "lam * norm of the Jacobian of the last hidden layer",
    "layer-2": "lam * norm of the Jacobian of the layer before it",
}
"""The term that each adds to the mean cross-entropy, for the report."""
