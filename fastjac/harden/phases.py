"""`harden` and `train`: two phases, one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastjac.harden.loop import Run
from fastjac.harden.objective import Objective, Penalty
from fastjac.harden.records import TrainingResult

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def harden(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    penalty: str | Penalty | None = "jacobian",
    lam: float = 0.1,
    epochs: int = 2,
    lr: float = 1e-4,
    optimizer: Optimizer | MakeOptimizer | None = None,
    penalty_options: Mapping[str, Any] | None = None,
    adversarial: float = 0.0,
    eps: float = 0.1,
    bounds: tuple[float, float] | None = None,
    freeze_batchnorm: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    resume: bool | Literal["auto"] = False,
    progress: bool = True,
    seed: int | None = None,
    process_group: Any = None,
) -> TrainingResult:
    """Harden a trained classifier by a short second training phase.

    The post-processing of Jakubovitz and Giryes (ECCV 2018): go on training with

        loss = CE + lam * penalty,  penalty = sqrt(sum_i ||J_i||_F^2) by default, eq. 4

    in train mode, with one forward a step that cross-entropy and penalty share. The
    model is changed in place; its modules' train and eval modes are put back.

    Args:
        model: classifier with logits (N, K), already trained.
        loader: gives batches ``(x, y)``, x of shape (N, ...) and y (N,) class indices;
            a ``DataLoader`` of any dataset, or a list of batches.
        penalty: ``"jacobian"`` (eq. 4), ``"cross-lipschitz"`` (eq. 6),
            ``"input-gradient"`` (eq. 5), a function ``(model, x, y) -> (penalty,
            logits)``, or None.
        lam: weight of the penalty. Eq. 5 and 6 are sums over the batch and need a
            smaller one than eq. 4, or ``penalty_options={"reduction": "mean"}``.
        epochs: passes over the loader.
        lr: learning rate of the Adam that is made if ``optimizer`` is None.
        optimizer: one over the model's parameters, or a function that makes one.
        penalty_options: keywords for the penalty: reduction, projections, backend, ...
        adversarial: share of each batch, 0 to 1, that FGSM perturbs before the step.
        eps: size of that FGSM step, in units of x.
        bounds: range that perturbed inputs are clipped to, such as ``(0, 1)``.
        freeze_batchnorm: keep BatchNorm at its running statistics; otherwise those of
            each batch are constants in its Jacobian (see `fastjac.jacobian_penalty`).
        checkpoint: file for checkpoints, written atomically every ``checkpoint_every``
            steps, on Ctrl-C and at the end.
        checkpoint_every: steps between checkpoints.
        resume: True goes on from ``checkpoint`` exactly where it was written (on the
            CPU the same weights, bit for bit, as of a run never interrupted); "auto"
            does so if the file exists.
        progress: show a bar with loss, penalty and accuracy (needs tqdm).
        seed: seeds torch's, NumPy's and Python's generators for this run, and puts
            their earlier states back afterwards. None uses them as they are.
        process_group: processes that train the model together: a torch.distributed
            group, or "world" for all of them; each calls this function in the same way.
            The loader gives the batches of all of them, of which each takes its share,
            so that the steps are those of one process, up to rounding and to random
            numbers such as dropout's. (One with a ``DistributedSampler`` gives shares
            already.) The first process shows progress and writes checkpoints, from
            which any number of processes can go on. None for this process alone, or
            the group of a DistributedDataParallel model.

    Returns:
        The history, one record an epoch.

    Raises:
        ValueError: an argument out of range.
        NonFiniteLossError: the loss became NaN or infinite; the model and the last
            checkpoint hold weights from before.
        TrainingInterrupted: Ctrl-C (a ``KeyboardInterrupt``); the checkpoint is saved.
        CheckpointError: nothing to resume from, or a checkpoint of another run.
        ProcessLostError: another process of the group ended.

    Example:
        >>> import torch, fastjac
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... )
        >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(5)]
        >>> x = batches[0][0]
        >>> before = fastjac.jacobian_norm(model, x).mean()
        >>> result = fastjac.harden(
        ...     model, batches, lam=1.0, epochs=3, lr=1e-2, progress=False
        ... )
        >>> bool(fastjac.jacobian_norm(model, x).mean() < before)
        True
        >>> result.steps
        15
    """
    objective = Objective(
        penalty, lam, dict(penalty_options or {}), adversarial, eps, bounds
    )
    run = Run(
        model,
        loader,
        objective,
        _optimizer(model, optimizer, lr),
        epochs=epochs,
        freeze_batchnorm=freeze_batchnorm,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress="harden" if progress else None,
        seed=seed,
        process_group=process_group,
    )
    return run(resume)


def train(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    optimizer: Optimizer | MakeOptimizer | None = None,
    adversarial: float = 0.0,
    eps: float = 0.1,
    bounds: tuple[float, float] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
    resume: bool | Literal["auto"] = False,
    progress: bool = True,
    seed: int | None = None,
    process_group: Any = None,
) -> TrainingResult:
    """Train a classifier on cross-entropy: the regular phase, before :func:`harden`.

    Arguments, result and errors are those of :func:`harden`. BatchNorm learns its
    statistics here.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2)
        >>> batches = [(x, (x[:, 0] > 0).long())]
        >>> result = train(
        ...     torch.nn.Linear(2, 2), batches, epochs=100, lr=0.1, progress=False
        ... )
        >>> result.history[-1].accuracy > 0.95
        True
    """
    run = Run(
        model,
        loader,
        Objective(adversarial=adversarial, eps=eps, bounds=bounds),
        _optimizer(model, optimizer, lr),
        epochs=epochs,
        freeze_batchnorm=False,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress="train" if progress else None,
        seed=seed,
        process_group=process_group,
    )
    return run(resume)


def _optimizer(
    model: nn.Module, optimizer: Optimizer | MakeOptimizer | None, lr: float
) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "model has no parameter with requires_grad=True: nothing to train;"
            " unfreeze some of its parameters"
        )
    if optimizer is not None:
        return optimizer(parameters)
    if not lr > 0:
        raise ValueError(f"lr (={lr}) must be positive")
    return torch.optim.Adam(parameters, lr=lr)
