"""What a penalty will do on a model: which operations run fused, how, and why not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastjac import profiling, seeds
from fastjac.eager import eager
from fastjac.explanation import Explanation, Missing, Step
from fastjac.fewer_rows import fewer_rows
from fastjac.forward import Origin, forward
from fastjac.graph import Unsupported
from fastjac.linearization import Linearization
from fastjac.linearize import (
    batch_norm_in_training,
    linearize,
    refuse_autograd,
    without_rule,
)
from fastjac.regularized import takes_one_sweep
from fastjac.rules.base import Rule
from fastjac.source import COUPLED, constant

#: What to do about operations without a rule, by how their names begin.
ADVICE = {
    "Cumprod": "write the product with exp, log and cumsum, or multiply term by term",
    "Sort": "use max, topk's gather, or keep sorting out of the path to the logits",
    "CopySlices": "write the result into a new tensor, with torch.where or torch.cat",
}
OTHERWISE = (
    "write it with operations that have a rule, or keep it out of the path from x to "
    "the logits"
)


@eager
def explain(
    model: Callable[[Tensor], Tensor], x: Tensor, *, profile: bool = False
) -> Explanation:
    """Say how penalties run on a model: layer by layer, or why they fall back.

    Args:
        model: maps x to logits of shape (N, K).
        x: (N, ...), a typical batch: densities of live outputs are measured on it.
        profile: run two sweeps, and give each layer's share of the time of the second.

    Returns:
        An `Explanation`; print it, hand it to a console of rich for a table, or take
        its fields, or ``as_dict()``, as data. Operations are two for each multiply-add,
        over all rows and the passes that a layer takes part in; bytes are those of all
        rows at its input. Its notes say what is taken differently from the model's own
        forward pass: BatchNorm in training mode.

    Raises:
        TypeError, ValueError: as `fastjac.jacobian_penalty`.

    Example:
        >>> import torch, fastjac
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> print(fastjac.explain(net, torch.randn(2, 4)))
        fused: 3 rows for each of 2 samples through 2 steps, input first
          Linear: dense, matrix product
              1.2 kFLOP, 96 B, weight 8x4
          Linear: dense, matrix product
              864 FLOP, 192 B, weight 3x8
    """
    logits, leaf = forward(model, x)
    samples, classes = logits.shape
    origin = Origin(model, leaf)
    try:
        with origin.gathered():
            linearization = linearize(logits, leaf)
    except Unsupported:
        missing = [_missing(one, origin) for one in without_rule(logits, leaf)]
        notes = _notes_on_fallback(logits, leaf)
        return Explanation("autograd", (samples, classes), classes, [], missing, notes)
    with torch.no_grad():
        chosen = fewer_rows(linearization, seeds.jacobian(logits))
        steps = _steps(linearization, chosen, profile)
    name = linearization.batch_statistics
    notes = [] if name is None else [f"{constant(name, origin)}."]
    return Explanation(
        "fused",
        (samples, classes),
        len(chosen),
        steps,
        [],
        notes,
        one_sweep=takes_one_sweep(linearization) and len(chosen) == classes,
    )


def _notes_on_fallback(logits: Tensor, x: Tensor) -> list[str]:
    coupled = batch_norm_in_training(logits, x) is not None
    notes = [f"{COUPLED}."] if coupled else []
    try:
        with torch.enable_grad():
            refuse_autograd(logits, x)
    except NotImplementedError as refused:
        notes.append(
            f"Autograd cannot compute the penalty's gradient either: {refused}."
        )
    return notes


def _missing(one: Unsupported, origin: Origin) -> Missing:
    advice = next((ADVICE[n] for n in ADVICE if one.name.startswith(n)), OTHERWISE)
    return Missing(one.name, one.reason, origin.locate(one.name), advice)


def _steps(linearization: Linearization, chosen: Tensor, profile: bool) -> list[Step]:
    rows, size = len(chosen), linearization.dtype.itemsize
    steps = [_step(rule, rows, size) for rule in linearization.rules]
    if not profile:
        return [Step(**step) for step in steps]
    times = profiling.shares(linearization, chosen)
    return [Step(**step, time=share) for step, share in zip(steps, times, strict=True)]


def _step(rule: Rule, rows: int, size: int) -> dict:
    trainable = sum(w.numel() for w in rule.weights if w.requires_grad)
    passes = 3 if trainable else 2
    return {
        "rule": rule.name,
        "runs": rule.describe(),
        "density": rule.density(),
        "weights": [tuple(weight.shape) for weight in rule.weights],
        "trainable": trainable,
        "operations": 2 * passes * rows * rule.multiplications,
        "bytes": size * rows * rule.elements,
    }
