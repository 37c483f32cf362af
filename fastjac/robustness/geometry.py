r"""The decision boundary near a sample to first order, and bounds on its curvature.

With :math:`J` the Jacobian of the logits :math:`z` at :math:`x`, :math:`k^*` the class
that the model gives, and :math:`k` any other (section 3 of Jakubovitz and Giryes, ECCV
2018):

    eq. 11   d    = min_k |z_k* - z_k| / ||J_k* - J_k||_2
    eq. 12   d   >= min_k |z_k* - z_k| / (sqrt(2) ||J||_F)
    eq. 13   the boundary is z_k1(x) - z_k2(x) = 0, here k1 = k*, k2 the k of eq. 11
    eq. 14   kappa = x^T (H_k1 - H_k2) x, with H_k taken as J_k^T J_k,
                   = (J_k1 x)^2 - (J_k2 x)^2
    eq. 15   kappa <= ||J x||^2 <= ||J||_F^2 ||x||_2^2

What each is:

* Eq. 11 is the exact distance from :math:`x` to the nearest decision boundary of the
  linearised model :math:`z(x) + J r`: the hyperplane between k* and k is
  :math:`(z_{k*} - z_k) + (J_{k*} - J_k) r = 0`. Of the model itself it is an estimate.
* Eq. 12 follows for the linearised model: a difference of two rows is at most
  :math:`\sqrt2` times as long as both together, :math:`\|a - b\|^2 \le 2\|a\|^2 +
  2\|b\|^2`, and two rows are part of :math:`\|J\|_F^2`. Equality: :math:`J_k = -J_{k*}`
  and all other rows zero. It bounds eq. 11, not the distance in the model itself.
* Eq. 14 takes the Hessian of a logit for the outer product of its gradient, as in the
  Gauss-Newton method; the Hessian of a piecewise-linear network is zero almost
  everywhere. So it is a heuristic: how much the two logits differ in steepness along
  :math:`x`, in squared logits, of either sign.
* Eq. 15 follows from eq. 14: one square among :math:`\|Jx\|^2 = \sum_k (J_k x)^2`, and
  then Cauchy and Schwarz, row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac import checks
from fastjac.attacks.arguments import Model, check_count, check_images
from fastjac.attacks.expansion import Expansion, class_seeds, evaluation_mode

# Elements of rows held at a time.
_BUDGET = {"cpu": 1 << 23, "cuda": 1 << 27}


@dataclass(frozen=True)
class Geometry:
    """First-order geometry of the decision boundary at each of N samples.

    Attributes:
        labels: (N,) the classes that the model gives.
        nearest: (N,) the class behind the nearest boundary of the linearised model.
        distance: (N,) eq. 11, the l2 distance to it; infinite if no boundary is near
            to first order (all differences of gradients zero).
        lower_bound: (N,) eq. 12, at most `distance`.
        jacobian_norm: (N,) the Frobenius norm of the Jacobian.
        curvature: (N,) eq. 14, of either sign.
        curvature_bound: (N,) eq. 15, at least `curvature`.
    """

    labels: Tensor
    nearest: Tensor
    distance: Tensor
    lower_bound: Tensor
    jacobian_norm: Tensor
    curvature: Tensor
    curvature_bound: Tensor


def geometry(
    model: Model, x: Tensor, *, chunk: int | None = None, backend: str = "auto"
) -> Geometry:
    """Measure the decision boundary near each sample, to first order.

    Formulas in the head of this module. One pull gives all of it. It is
    accumulated in float64 and returned so; nothing is differentiable.

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, K >= 2, put in
            evaluation mode meanwhile.
        x: (N, ...) samples, floating.
        chunk: samples at a time, None for as many as fit a fixed budget.
        backend: as in `fastjac.jacobian_penalty`.

    Returns:
        A `Geometry`.

    Raises:
        TypeError, ValueError: a bad argument; the message names it.

    Example:
        >>> import torch
        >>> from fastjac import robustness
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> near = robustness.geometry(model, torch.tensor([[1.0, 0.0]]))
        >>> near.distance.item(), near.jacobian_norm.item(), near.curvature.item()
        (0.6, 5.0, 9.0)
    """
    check_images(x, None)
    checks.one_of("backend", backend, checks.BACKENDS)
    if chunk is not None:
        check_count("chunk", chunk, 1)
    with evaluation_mode(model):
        if chunk is None:
            logits = Expansion(model, x[:1], backend).logits
            per_sample = logits.shape[1] * x[0].numel()
            chunk = max(1, _BUDGET.get(x.device.type, 1 << 23) // per_sample)
        parts = [_measure(model, part, backend) for part in x.split(chunk)]
    return Geometry(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _measure(model: Model, x: Tensor, backend: str) -> tuple[Tensor, ...]:
    expansion = Expansion(model, x, backend)
    logits = expansion.logits
    checks.check_finite(logits, x)
    order = logits.argsort(dim=1, descending=True, stable=True)
    gaps = (logits.gather(1, order[:, :1]) - logits.gather(1, order)).double()
    sizes, squares, images = _rows(expansion, order, x)

    distances = torch.where(sizes > 0, gaps / sizes, torch.inf)
    distances[:, 0] = torch.inf
    distance, at = distances.min(1)
    norm = squares.sum(1).sqrt()
    smallest_gap = gaps[:, 1]
    # No slope at all: no boundary to first order, as in eq. 11.
    bound = torch.where(norm > 0, smallest_gap / (2**0.5 * norm), torch.inf)
    curvature = images[:, 0].square() - images.gather(1, at[:, None])[:, 0].square()
    size = x.flatten(1).double().square().sum(1)
    nearest = order.gather(1, at[:, None])[:, 0]
    return (
        order[:, 0],
        nearest,
        distance,
        bound,
        norm,
        curvature,
        squares.sum(1) * size,
    )


def _rows(
    expansion: Expansion, order: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For the classes in `order` `(n, K)`: ||J_k - J_k*||, ||J_k||^2 and J_k x."""
    flat = x.flatten(1).double()
    budget = _BUDGET.get(x.device.type, 1 << 23)
    at_once = max(1, budget // flat.numel())
    top: Tensor | None = None
    sizes, squares, images = [], [], []
    for classes in order.split(at_once, dim=1):
        rows = expansion.rows(class_seeds(classes, expansion.logits))
        rows = rows.flatten(2).double()
        top = rows[:, :1].clone() if top is None else top
        sizes.append((rows - top).norm(dim=2))
        squares.append(rows.square().sum(2))
        images.append((rows @ flat[:, :, None])[:, :, 0])
    return torch.cat(sizes, 1), torch.cat(squares, 1), torch.cat(images, 1)


def distance_estimate(
    model: Model, x: Tensor, *, chunk: int | None = None, backend: str = "auto"
) -> Tensor:
    """Distance to the nearest boundary of the linearised model, `(N,)`, eq. 11.

    In the units of x, l2. The first step of DeepFool without its margin and overshoot.
    Arguments and errors as of `geometry`.

    Example:
        >>> import torch
        >>> from fastjac import robustness
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
        >>> estimate = robustness.distance_estimate(model, x)
        >>> bool((robustness.distance_lower_bound(model, x) <= estimate).all())
        True
    """
    return geometry(model, x, chunk=chunk, backend=backend).distance


def distance_lower_bound(
    model: Model, x: Tensor, *, chunk: int | None = None, backend: str = "auto"
) -> Tensor:
    """Lower bound of the `distance_estimate` by the Jacobian's norm, `(N,)`, eq. 12.

    What the penalty raises. It is no certificate: the model is not linear.
    Arguments and errors as of `geometry`.
    """
    return geometry(model, x, chunk=chunk, backend=backend).lower_bound


def curvature_bound(
    model: Model, x: Tensor, *, chunk: int | None = None, backend: str = "auto"
) -> Tensor:
    """Upper bound of the boundary's curvature, `(N,)`, eq. 15.

    ||J||_F^2 ||x||_2^2, in squared logits; of eq. 14's estimate, which takes Hessians
    for outer products of gradients.
    Arguments and errors as of `geometry`.
    """
    return geometry(model, x, chunk=chunk, backend=backend).curvature_bound
