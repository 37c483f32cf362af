"""Every number of the samples of a batch."""

import torch
from torch import Tensor

from fastjac.attacks.arguments import Bounds, Model, check_images
from fastjac.attacks.deepfool import deepfool
from fastjac.attacks.fgsm import loss_direction
from fastjac.attacks.jsma import jsma
from fastjac.attacks.pgd import pgd
from fastjac.jacobian import jacobian_norm
from fastjac.robustness.geometry import geometry
from fastjac.robustness.progress import Progress, Settings


def measured(
    model: Model, x: Tensor, y: Tensor, settings: Settings, done: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return values of `(n, ...)` by name, and pictures as far as they are wanted.

    Args:
        model: in evaluation mode.
        x: `(n, ...)`.
        y: `(n,)` true classes.
        settings: of the evaluation.
        done: what has been measured before.
    """
    check_images(x, settings.bounds)
    near = geometry(model, x, backend=settings.backend)
    found = deepfool(
        model,
        x,
        steps=settings.steps,
        overshoot=settings.overshoot,
        candidates=settings.candidates,
        backend=settings.backend,
    )
    sizes = x.flatten(1).double().norm(dim=1)
    norms = found.norms.double()
    values = {
        "label": y,
        "correct": near.labels == y,
        "distance": norms,
        "relative_distance": norms / sizes,
        "iterations": found.iterations,
        "fooled": found.success,
        "jacobian_norm": near.jacobian_norm,
        "jacobian_norm_adversarial": jacobian_norm(
            model, found.adversarial, backend=settings.backend
        ).double(),
        "distance_estimate": near.distance,
        "distance_lower_bound": near.lower_bound,
        "curvature": near.curvature,
        "curvature_bound": near.curvature_bound,
        **_attacked(model, x, y, settings, done.batches),
    }
    wanted = settings.examples - sum(len(p) for p in done.pictures.get("images", []))
    if wanted <= 0:
        return values, {}
    pictures = {
        "images": x,
        "perturbations": found.perturbation,
        "adversarial": found.adversarial,
        "labels": y,
        "predicted": found.original_labels,
        "fooled_into": found.labels,
    }
    return values, {name: value[:wanted].clone() for name, value in pictures.items()}


def _attacked(
    model: Model, x: Tensor, y: Tensor, settings: Settings, batch: int
) -> dict[str, Tensor]:
    """(n, E) whether each sample is still right after each attack."""
    bounds, backend = settings.bounds, settings.backend
    direction = loss_direction(model, x, y, "linf", backend)
    right = [_right(model, x + e * direction, y, bounds) for e in settings.fgsm_eps]
    values = {"fgsm": torch.stack(right, 1)} if right else {}
    right = []
    for eps in settings.pgd_eps:
        draws = torch.Generator(x.device).manual_seed(settings.seed + batch)
        moved = pgd(
            model,
            x,
            y,
            eps,
            bounds,
            steps=settings.pgd_steps,
            generator=draws,
            backend=backend,
        )
        right.append(_right(model, moved, y, bounds))
    if right:
        values["pgd"] = torch.stack(right, 1)
    if settings.jsma_steps is not None:
        target = (y + 1) % model(x[:1]).shape[1]
        found = jsma(
            model,
            x,
            target,
            steps=settings.jsma_steps,
            bounds=bounds or (0.0, 1.0),
            backend=backend,
        )
        values["jsma"] = found.labels == y
    return values


def _right(model: Model, x: Tensor, y: Tensor, bounds: Bounds | None) -> Tensor:
    x = x if bounds is None else x.clamp(*bounds)
    return model(x).argmax(1) == y
