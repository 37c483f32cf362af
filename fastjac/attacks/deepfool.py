"""DeepFool: the shortest way over the nearest boundary, step by linear step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac.attacks.arguments import (
    Bounds,
    Model,
    Norm,
    check_amount,
    check_classes,
    check_count,
    check_images,
    check_norm,
    check_range,
)
from fastjac.attacks.deepfool_step import deepfool_step
from fastjac.attacks.expansion import class_seeds
from fastjac.attacks.search import Fields, Method, Outcome, Pool, search


@dataclass(frozen=True)
class DeepFoolResult:
    """What DeepFool found for each of N samples.

    Attributes:
        adversarial: (N, ...) perturbed samples.
        perturbation: (N, ...) what was added, overshoot included.
        norms: (N,) its l2 or l_inf norm, the one that was asked for.
        iterations: (N,) int64, steps taken; 0 if there was nothing to do.
        original_labels: (N,) int64, the model's classes of the clean samples.
        labels: (N,) int64, the model's classes of the perturbed samples.
        success: (N,) bool, whether the class changed (targeted: is the target).
    """

    adversarial: Tensor
    perturbation: Tensor
    norms: Tensor
    iterations: Tensor
    original_labels: Tensor
    labels: Tensor
    success: Tensor


def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    bounds: Bounds | None = None,
    norm: Norm = "l2",
    target: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> DeepFoolResult:
    r"""Find a small perturbation that changes the class, for each sample.

    Per step, with :math:`w_k = \nabla z_k - \nabla z_0`, :math:`f_k = z_k - z_0` and
    0 the class to leave, the nearest boundary :math:`k^*` of the linearised model is
    crossed: :math:`r \leftarrow r + (|f_{k^*}| / \|w_{k^*}\| + 10^{-4})\,
    w_{k^*} / \|w_{k^*}\|` and :math:`x = x_0 + (1 + \text{overshoot})\,r`, until the
    class has changed. Numerics are those of the authors' code (Moosavi-Dezfooli,
    Fawzi, Frossard: DeepFool, CVPR 2016); `norm="linf"` is its section 3.3.

    Each sample stops on its own and leaves the batch. A sample at which every
    :math:`w_k` is zero (dead gradients) stops where it is, without success. Exact
    ties between logits go to the lower class.

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, K >= 2. It is
            put in evaluation mode meanwhile, with a warning if that matters.
        x: (N, ...) clean samples, floating.
        y: (N,) true classes or None. With it, a sample that the model gets wrong
            anyway is left as it is: 0 iterations, success. Without it the class to
            leave is the one that the model gives, as in the original.
        steps: most steps a sample, >= 0; with 0 nothing moves.
        overshoot: share by which the boundary is passed, >= 0.
        candidates: how many of the classes with the largest logits at the clean
            sample are looked at, the class to leave among them, >= 2; all K if there
            are no more.
        bounds: (low, high) that the perturbed samples are kept in, or None.
        norm: "l2" or "linf", what is kept small.
        target: (N,) classes to reach, or None for any other class. At each step the
            boundary between the target and the class of that moment is crossed. A
            sample that is of its target class already is left as it is: success.
        chunk: samples at a time, None for 128 on a CPU and 1024 on a GPU.
        backend: as in `fastjac.jacobian_penalty`.
        progress: show a bar (needs tqdm).

    Returns:
        A `DeepFoolResult`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, `x` outside `bounds`, logits that are
            not `(N, K)` with K >= 2, or not finite.

    Example:
        >>> import torch
        >>> from fastjac import attacks
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> found = attacks.deepfool(model, torch.tensor([[3.0, 1.0]]), overshoot=0.0)
        >>> found.perturbation.round(decimals=3)
        tensor([[-3.,  0.]])
        >>> found.original_labels.item(), found.labels.item(), found.success.item()
        (0, 1, True)
    """
    check_images(x, bounds)
    check_norm(norm)
    check_count("steps", steps, 0)
    check_count("candidates", candidates, 2)
    check_amount("overshoot", overshoot)
    if chunk is not None:
        check_count("chunk", chunk, 1)
    for name, classes in (("y", y), ("target", target)):
        if classes is not None:
            check_classes(name, classes, x)
    if y is not None and target is not None:
        raise ValueError("`y` and `target` exclude each other; pass one of them")
    method = _DeepFool(
        steps, overshoot, candidates, bounds, norm, y, target, samples=len(x)
    )
    outcome = search(model, x, method, chunk=chunk, backend=backend, progress=progress)
    shift = outcome.more.get("shift", torch.zeros_like(outcome.x))
    perturbation = (1 + overshoot) * shift
    flat = perturbation.flatten(1)
    return DeepFoolResult(
        adversarial=outcome.x,
        perturbation=perturbation,
        norms=flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1),
        iterations=outcome.iterations,
        original_labels=method.original_labels(outcome),
        labels=outcome.labels,
        success=outcome.success,
    )


@dataclass
class _DeepFool(Method):
    steps: int
    overshoot: float
    candidates: int
    bounds: Bounds | None
    norm: Norm
    y: Tensor | None
    target: Tensor | None
    samples: int
    ranked: Tensor | None = None  # (samples, R), the classes each one started with

    def admit(self, index: Tensor, x: Tensor) -> Fields:
        return {"shift": torch.zeros_like(x)}

    def reached(self, pool: Pool, logits: Tensor) -> Tensor:
        labels = logits.argmax(1)
        original = self._rank(pool, logits)[:, 0]
        if self.target is not None:
            return labels == self.target[pool.index]
        changed = labels != original
        return changed if self.y is None else changed | (labels != self.y[pool.index])

    def seeds(self, pool: Pool, logits: Tensor) -> Tensor:
        classes = self._classes(pool, logits)
        return class_seeds(classes[:, 1:], logits) - class_seeds(classes[:, :1], logits)

    def step(self, pool: Pool, logits: Tensor, rows: Tensor) -> None:
        pool.stuck = deepfool_step(
            rows,
            logits.gather(1, self._classes(pool, logits)),
            pool.start,
            pool.more["shift"],
            pool.x,
            overshoot=self.overshoot,
            bounds=self.bounds,
            norm=self.norm,
        )

    def _classes(self, pool: Pool, logits: Tensor) -> Tensor:
        """(n, R) the class to leave and the ones to look at."""
        assert self.ranked is not None
        if self.target is None:
            return self.ranked[pool.index]
        return torch.stack([logits.argmax(1), self.target[pool.index].long()], 1)

    def _rank(self, pool: Pool, logits: Tensor) -> Tensor:
        """(n, R) classes by their logits at the clean sample, the largest first."""
        if self.ranked is None:
            for name, classes in (("y", self.y), ("target", self.target)):
                if classes is not None:
                    check_range(name, classes, logits.shape[1])
            width = min(self.candidates, logits.shape[1])
            self.ranked = pool.index.new_zeros(self.samples, width)
        now = logits.argsort(dim=1, descending=True, stable=True)
        now = now[:, : self.ranked.shape[1]]
        fresh = pool.iterations[:, None] == 0
        ranked = torch.where(fresh, now, self.ranked[pool.index])
        self.ranked[pool.index] = ranked
        return ranked

    def original_labels(self, outcome: Outcome) -> Tensor:
        """(N,) the classes of the clean samples."""
        return outcome.labels if self.ranked is None else self.ranked[:, 0].clone()
