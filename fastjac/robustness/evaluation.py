"""All measures over a data set: with progress, in bounded memory, resumable."""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastjac import checkpoint as files
from fastjac.attacks.arguments import (
    Bounds,
    Model,
    check_amount,
    check_count,
)
from fastjac.attacks.expansion import evaluation_mode
from fastjac.attacks.search import bar
from fastjac.harden.batches import unpack
from fastjac.robustness.batch import measured
from fastjac.robustness.progress import (
    Progress,
    Settings,
    check_same,
    fingerprint,
    resumed,
)
from fastjac.robustness.report import Examples, RobustnessReport

EPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


def evaluate(
    model: Model,
    loader: Iterable[Any],
    *,
    fgsm_eps: Sequence[float] = EPS,
    pgd_eps: Sequence[float] = (),
    pgd_steps: int = 40,
    jsma_steps: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    examples: int = 8,
    limit: int | None = None,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    backend: str = "auto",
    progress: bool = True,
    notes: Sequence[str] = (),
) -> RobustnessReport:
    """Measure how robust `model` is on the samples of `loader`.

    DeepFool runs without bounds, as in the paper; FGSM, PGD and JSMA keep them. Memory
    is bounded by a batch and about a hundred bytes a sample.

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, put in evaluation
            mode meanwhile.
        loader: batches `(x, y)`, in the same order each time if a `checkpoint` is to
            be resumed.
        fgsm_eps: sizes of l_inf perturbations to take the accuracy under FGSM at.
        pgd_eps: the same under PGD.
        pgd_steps: steps of PGD, one random start.
        jsma_steps: steps of one-pixel JSMA towards the class after the true one; None
            to leave it out.
        bounds: (low, high) of x, or None.
        steps: most steps of DeepFool.
        overshoot: of DeepFool.
        candidates: of DeepFool.
        examples: how many samples to keep for the grid of images.
        limit: stop after this many samples.
        checkpoint: file that is written after each batch and, if it is there already,
            continued from. It must be of the same model, settings and data.
        device: where batches are moved to; None for the model's.
        seed: of PGD's random starts, a batch's own, so that resuming changes nothing.
        backend: as in `fastjac.jacobian_penalty`.
        progress: show a bar (needs tqdm).
        notes: sentences that the report prints beside its numbers.

    Returns:
        A `RobustnessReport`.

    Raises:
        TypeError: `loader` gives anything but pairs of tensors.
        ValueError: an argument out of range, `x` outside `bounds`, no samples, or a
            checkpoint of another model, other settings or other data.
        fastjac.checkpoint.CheckpointError: a damaged checkpoint.

    Example:
        >>> import torch
        >>> from fastjac import robustness
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3))
        >>> batches = [(torch.rand(5, 1, 3, 3), torch.randint(3, (5,)))] * 2
        >>> report = robustness.evaluate(model, batches, progress=False)
        >>> report.samples, sorted(report.fgsm)[:2]
        (10, [0.0, 0.05])
    """
    settings = Settings(
        fgsm_eps=tuple(float(eps) for eps in fgsm_eps),
        pgd_eps=tuple(float(eps) for eps in pgd_eps),
        pgd_steps=pgd_steps,
        jsma_steps=jsma_steps,
        bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
        steps=steps,
        overshoot=overshoot,
        candidates=candidates,
        examples=examples,
        seed=seed,
        backend=backend,
    )
    _check(settings, limit)
    identity = {"model": fingerprint(model), "settings": asdict(settings)}
    done = resumed(checkpoint, identity)
    place = _device(model) if device is None else torch.device(device)
    left = float("inf") if limit is None else limit
    with (
        evaluation_mode(model),
        bar(_batch_count(loader, limit), progress, unit="batch") as shown,
    ):
        for number, batch in enumerate(loader):
            if left <= 0:
                break
            x, y = unpack(batch, place)
            x, y = x[: int(min(left, len(x)))], y[: int(min(left, len(y)))]
            left -= len(x)
            if number < done.batches:
                check_same(done, number, y, checkpoint)
            else:
                done.add(*measured(model, x, y, settings, done))
                if checkpoint is not None:
                    files.save(checkpoint, "evaluation", {**identity, **vars(done)})
            shown.update(1)
    if not done.batches:
        raise ValueError("`loader` must hold at least one batch (x, y); it is empty")
    return _report(done, settings, tuple(notes))


def _report(
    done: Progress, settings: Settings, notes: tuple[str, ...]
) -> RobustnessReport:
    values = done.joined()

    def mean(name: str, where: Tensor | None = None) -> float:
        value = values[name].double()
        return float((value if where is None else value[where]).mean())

    def curve(name: str, eps: tuple[float, ...]) -> dict[float, float]:
        if not eps:
            return {}
        return dict(zip(eps, values[name].double().mean(0).tolist(), strict=True))

    nonzero = values["relative_distance"].isfinite()
    near = values["distance_estimate"].isfinite()
    if not bool(nonzero.all()):
        left_out = int((~nonzero).sum())
        notes = (*notes, f"{left_out} samples are all zero and left out of rho_adv.")
    pictures = {name: torch.cat(parts) for name, parts in done.pictures.items()}
    attacks = ("fgsm", "pgd", "jsma")
    return RobustnessReport(
        samples=len(values["label"]),
        accuracy=mean("correct"),
        rho_adv=mean("relative_distance", nonzero),
        mean_distance=mean("distance"),
        median_distance=float(values["distance"].median()),
        fooled=mean("fooled"),
        iterations=mean("iterations"),
        fgsm=curve("fgsm", settings.fgsm_eps),
        pgd=curve("pgd", settings.pgd_eps),
        jsma=None if settings.jsma_steps is None else mean("jsma"),
        jacobian_norm=mean("jacobian_norm"),
        jacobian_norm_adversarial=mean("jacobian_norm_adversarial"),
        distance_estimate=mean("distance_estimate", near),
        distance_lower_bound=mean("distance_lower_bound", near),
        curvature_bound=mean("curvature_bound"),
        per_sample={k: v for k, v in values.items() if k not in attacks},
        examples=Examples(**pictures) if pictures else None,
        notes=notes,
    )


def _check(settings: Settings, limit: int | None) -> None:
    for name in ("fgsm_eps", "pgd_eps"):
        for eps in getattr(settings, name):
            check_amount(name, eps)
    check_count("examples", settings.examples, 0)
    check_count("pgd_steps", settings.pgd_steps, 0)
    if settings.jsma_steps is not None:
        check_count("jsma_steps", settings.jsma_steps, 0)
    if limit is not None:
        check_count("limit", limit, 1)


def _batch_count(loader: Iterable[Any], limit: int | None) -> int | None:
    """How many batches will be looked at, as far as that is known beforehand."""
    if not isinstance(loader, Sized):
        return None
    size = getattr(loader, "batch_size", None)
    if limit is None or not isinstance(size, int):
        return len(loader)
    return min(len(loader), -(-limit // size))


def _device(model: Model) -> torch.device | None:
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    first = next(weights, None)
    return None if first is None else first.device
