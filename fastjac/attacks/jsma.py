"""The Jacobian saliency map attack: as few features as possible, each changed a lot."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac.attacks.arguments import (
    Bounds,
    Model,
    check_bounds,
    check_classes,
    check_count,
    check_images,
    check_range,
)
from fastjac.attacks.jsma_step import jsma_step
from fastjac.attacks.search import Fields, Method, Pool, search


@dataclass(frozen=True)
class JSMAResult:
    """What JSMA found for each of N samples.

    Attributes:
        adversarial: (N, ...) perturbed samples.
        features: (N, steps, pixels) int64, the flat indices of the features changed in
            each step, in order; -1 where no step was taken.
        iterations: (N,) int64, steps taken.
        labels: (N,) int64, the model's classes of the perturbed samples.
        success: (N,) bool, whether that is the target.
    """

    adversarial: Tensor
    features: Tensor
    iterations: Tensor
    labels: Tensor
    success: Tensor


def jsma(
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    steps: int = 80,
    theta: float = 1.0,
    pixels: int = 1,
    bounds: Bounds = (0.0, 1.0),
    chunk: int | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> JSMAResult:
    r"""Change the most salient features of each sample until it is of the target class.

    Saliency is taken at the logits, from two rows a step: :math:`\nabla z_t` and
    :math:`\nabla \sum_{j \ne t} z_j` (Papernot et al., The limitations of deep learning
    in adversarial settings, 2016; formulas in `fastjac.attacks.jsma_step`). A feature
    that has reached its bound is not chosen again. A sample stops at its target, when
    no feature is salient, or after `steps`.

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, K >= 2.
        x: (N, ...) clean samples within `bounds`, floating.
        target: (N,) classes to reach. A sample that is of its target class already is
            left as it is: 0 iterations, success.
        steps: most steps a sample, >= 0; 80 and 200 are the settings of Jakubovitz and
            Giryes for MNIST and CIFAR-10, with one pixel.
        theta: change of a chosen feature, positive to increase, negative to decrease.
        pixels: features changed a step: 1, or 2 for the pairs of the original.
        bounds: (low, high) of the features.
        chunk: samples at a time, None for 128 on a CPU and 1024 on a GPU.
        backend: as in `fastjac.jacobian_penalty`.
        progress: show a bar (needs tqdm).

    Returns:
        A `JSMAResult`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or `x` outside `bounds`.

    Example:
        >>> import torch
        >>> from fastjac import attacks
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> model.weight.data = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 2.0, 0.5]])
        >>> model.weight.data[0] = -model.weight.data[1]
        >>> x, target = torch.tensor([[1.0, 0.1, 0.0]]), torch.tensor([1])
        >>> found = attacks.jsma(model, x, target)
        >>> found.adversarial, found.features[0, :2, 0].tolist()
        (tensor([[1., 1., 0.]]), [1, -1])
    """
    check_bounds(bounds)
    check_images(x, bounds)
    check_classes("target", target, x)
    check_count("steps", steps, 0)
    if pixels not in (1, 2):
        raise ValueError(f"`pixels` must be 1 or 2; got {pixels!r}")
    if not (theta > 0 or theta < 0):
        raise ValueError(f"`theta` must be a number other than 0; got {theta}")
    if chunk is not None:
        check_count("chunk", chunk, 1)
    features = target.new_full((len(x), steps, pixels), -1, dtype=torch.int64)
    method = _JSMA(steps, theta, pixels, bounds, target, features)
    outcome = search(model, x, method, chunk=chunk, backend=backend, progress=progress)
    return JSMAResult(
        adversarial=outcome.x,
        features=features,
        iterations=outcome.iterations,
        labels=outcome.labels,
        success=outcome.success,
    )


@dataclass
class _JSMA(Method):
    steps: int
    theta: float
    pixels: int
    bounds: Bounds
    target: Tensor
    features: Tensor  # (N, steps, pixels), filled as samples go along
    checked: bool = False

    def admit(self, index: Tensor, x: Tensor) -> Fields:
        low, high = self.bounds
        return {"open": x < high if self.theta > 0 else x > low}

    def reached(self, pool: Pool, logits: Tensor) -> Tensor:
        if not self.checked:
            check_range("target", self.target, logits.shape[1])
            self.checked = True
        return logits.argmax(1) == self.target[pool.index]

    def seeds(self, pool: Pool, logits: Tensor) -> Tensor:
        at = self.target[pool.index].long()[:, None]
        target = torch.zeros_like(logits).scatter_(1, at, 1.0)
        return torch.stack([target, 1 - target], 1)

    def step(self, pool: Pool, logits: Tensor, rows: Tensor) -> None:
        chosen = jsma_step(
            rows,
            pool.x,
            pool.more["open"],
            theta=self.theta,
            pixels=self.pixels,
            bounds=self.bounds,
        )
        self.features[pool.index, pool.iterations] = chosen
        pool.stuck = chosen[:, 0] < 0
