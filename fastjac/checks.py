"""Checks of what users pass; every message says what was got, expected and to do."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastjac import native
from fastjac.precision import wide

REDUCTIONS = ("frobenius", "sum", "mean", "none")
BACKENDS = ("auto", "fused", "autograd")
BATCH_STATISTICS = ("constant", "error")

#: How many (sample, row) pairs to hold at once; None is "auto".
ChunkSize = int | Literal["auto"] | None


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"`{name}` must be one of {options}; got {value!r}")


def check_input(x: Tensor) -> None:
    """Raise unless ``x`` is a floating-point batch of at least one sample."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor; got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"`x` must be floating point to have a derivative; got {x.dtype}. "
            "Convert it first, e.g. x.float() / 255 for uint8 images"
        )
    if x.dim() < 2:
        raise ValueError(
            f"`x` must be a batch of shape (N, ...); got shape {tuple(x.shape)}. "
            "Add a batch dimension with x.unsqueeze(0)"
        )
    if x.shape[0] == 0:
        raise ValueError(
            f"`x` holds no samples (shape {tuple(x.shape)}); skip empty batches"
        )


def check_logits(logits: Any, x: Tensor) -> None:
    """Raise unless ``logits`` are (N, K), finite and connected with ``x``."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return logits as one tensor; got {type(logits).__name__}. "
            "Wrap it in a function that picks the logits"
        )
    if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
        raise ValueError(
            f"`logits` must have shape (N, K) with N = {x.shape[0]} as in x; got "
            f"{tuple(logits.shape)}. Flatten or pool the model's output to one score "
            "a class"
        )
    if logits.shape[1] == 0:
        raise ValueError(
            f"`logits` must have at least one class; got shape {tuple(logits.shape)}"
        )
    if not logits.is_floating_point():
        raise TypeError(f"`logits` must be floating point; got {logits.dtype}")
    if logits.device != x.device:
        raise ValueError(
            f"`x` is on {x.device} and `logits` are on {logits.device}; move the model "
            "and x to one device"
        )
    check_finite(logits, x)


def detached() -> ValueError:
    """Return the error for logits that the graph does not connect with ``x``."""
    return ValueError(
        "`x` is detached from `logits`: the autograd graph has no path between them. "
        "Call x.requires_grad_() before the forward pass, and do not use .detach(), "
        ".data, .item(), NumPy or torch.no_grad() in between"
    )


def check_finite(logits: Tensor, x: Tensor) -> None:
    """Raise for NaN or infinite logits, naming the sample and whether x is the cause.

    On a GPU the test would have to wait for the device, so `poison` is used instead.
    """
    if native.waits(logits):
        return
    logits = logits.detach()
    if math.isfinite(logits.sum()):  # one operator; an overflow is looked at below
        return
    bad = ~torch.isfinite(logits).all(1)
    if not bad.any():
        return
    sample = int(bad.nonzero()[0, 0])
    if torch.isfinite(x.detach()[sample]).all():
        cause = "x is finite there, so the model's weights or activations overflowed"
    else:
        cause = "x holds NaN or infinity there; clean the data"
    raise ValueError(
        f"`logits` of sample {sample} are not finite ({int(bad.sum())} of "
        f"{len(bad)} samples); {cause}"
    )


def poison(value: Tensor, logits: Tensor) -> Tensor:
    """Make ``value`` NaN where logits on a GPU are not finite, without waiting."""
    if not native.waits(logits):
        return value
    bad = ~torch.isfinite(logits.detach()).all()
    return torch.where(bad, torch.full_like(value, float("nan")), value)


def check_class_weights(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return class weights as a (K,) tensor for seeds; raise if they are not."""
    if weights is None:
        return None
    classes = logits.shape[1]
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"`class_weights` must be a tensor of shape ({classes},); got "
            f"{type(weights).__name__}"
        )
    given = weights.to(dtype=wide(logits.dtype), device=logits.device)
    if given.shape != (classes,):
        raise ValueError(
            f"`class_weights` must have shape ({classes},), one weight a class; got "
            f"{tuple(given.shape)}"
        )
    if native.waits(
        weights
    ):  # a root of what is negative is NaN, and so is the penalty
        return given.detach()
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f"`class_weights` must be finite and not negative; got {given.tolist()}"
        )
    return given.detach()


def check_projections(projections: int | None, classes: int) -> None:
    """Raise unless ``projections`` is None or within 1..K."""
    if projections is None:
        return
    if type(projections) is not int or not 1 <= projections <= classes:
        raise ValueError(
            f"`projections` must be an integer from 1 to K = {classes}; got "
            f"{projections!r}. None, the default, gives the exact penalty"
        )


def check_chunk(chunk: ChunkSize) -> int | None:
    """Return ``chunk``, None for "auto"; raise for anything but a positive integer."""
    if chunk is None or chunk == "auto":
        return None
    if type(chunk) is not int or chunk < 1:
        raise ValueError(
            "`chunk` must be a positive number of (sample, row) pairs to hold at once, "
            f"or 'auto' to let fastjac choose; got {chunk!r}"
        )
    return chunk


def check_seeds(seeds: Tensor, samples: int, classes: int) -> None:
    """Raise unless seeds are (R, K), or (N, R, K)."""
    if not isinstance(seeds, Tensor):
        raise TypeError(f"`seeds` must be a tensor; got {type(seeds).__name__}")
    shared = seeds.dim() == 2 and seeds.shape[1] == classes
    own = seeds.dim() == 3 and (seeds.shape[0], seeds.shape[2]) == (samples, classes)
    if not (shared or own) or seeds.shape[-2] == 0:
        raise ValueError(
            f"`seeds` must have shape (R, {classes}), shared by all samples, or "
            f"({samples}, R, {classes}), with R at least 1; got {tuple(seeds.shape)}"
        )


def check_labels(y: Tensor, logits: Tensor) -> None:
    """Raise unless ``y`` are (N,) class indices."""
    samples, classes = logits.shape
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32):
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"`y` must be a tensor of integer class labels; got {got}")
    if y.shape != (samples,):
        raise ValueError(f"`y` must have shape ({samples},); got {tuple(y.shape)}")
    if y.device != logits.device:
        raise ValueError(
            f"`y` is on {y.device} and `logits` are on {logits.device}; move y there"
        )
    if not native.waits(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise ValueError(
            f"`y` must hold labels from 0 to K - 1 = {classes - 1}; got labels from "
            f"{int(y.min())} to {int(y.max())}"
        )


_said: set[str] = set()


def warn_once(key: str, message: Callable[[], str]) -> None:
    """Warn about one thing once a process; only then is the message made."""
    if key not in _said:
        warnings.warn(message(), stacklevel=_users_level())
        _said.add(key)


def _users_level() -> int:
    """Return the stack level of the first caller outside fastjac and torch."""
    inside = (str(Path(__file__).parent), str(Path(torch.__file__).parent))
    frame, level = sys._getframe(1), 1
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level
