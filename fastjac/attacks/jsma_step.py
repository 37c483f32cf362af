"""One JSMA step for a batch: choose one or two features by saliency, change them.

With J_t the gradient of the target logit, J_o that of the sum of all others, and s the
sign of theta, a feature i is worth u_i = s J_t[i] for the target and v_i = -s J_o[i]
against the others (Papernot et al. 2016, eq. 8 to 10 and Algorithm 3):

    one pixel:   argmax u_p v_p                  over open p, u_p > 0 and v_p > 0
    two pixels:  argmax (u_p + u_q)(v_p + v_q)   over open p < q, both sums > 0

The first in order wins a tie. A chosen feature changes by theta, clamped to the bounds,
and closes when it has arrived at its bound.
"""

import torch
from torch import Tensor

from fastjac import native, native_steps
from fastjac.attacks.arguments import Bounds

# Scores held at a time by the reference's search for pairs.
_BLOCK = 1 << 22


def jsma_step_reference(
    rows: Tensor,
    x: Tensor,
    open_features: Tensor,
    *,
    theta: float,
    pixels: int,
    bounds: Bounds,
) -> Tensor:
    """Move `x` and update `open_features` in place; return what was chosen.

    Args:
        rows: (n, 2, ...) gradients J_t and J_o.
        x: (n, ...) the perturbed samples.
        open_features: (n, ...) bool, the features that may be chosen.
        theta: change of a chosen feature, not zero.
        pixels: features a step, 1 or 2.
        bounds: (low, high) of `x`.

    Returns:
        (n, pixels) int64 features in ascending order, -1 where none is salient.
    """
    flat, now = x.flatten(1), open_features.flatten(1)
    sign = 1 if theta > 0 else -1
    target, others = rows.flatten(2).unbind(1)
    u, v = sign * target, -sign * others
    chosen = _best_pixel(u, v, now) if pixels == 1 else _best_pair(u, v, now)
    found = chosen >= 0
    at = chosen.clamp_min(0)
    old = flat.gather(1, at)
    new = (old + theta).clamp(*bounds)
    room = new < bounds[1] if theta > 0 else new > bounds[0]
    flat = flat.scatter(1, at, torch.where(found, new, old))
    now = now.scatter(1, at, torch.where(found, room, now.gather(1, at)))
    x.copy_(flat.view_as(x))
    open_features.copy_(now.view_as(open_features))
    return chosen


def _best_pixel(u: Tensor, v: Tensor, now: Tensor) -> Tensor:
    score = torch.where(now & (u > 0) & (v > 0), u * v, 0)
    best, at = score.max(1, keepdim=True)
    return torch.where(best > 0, at, -1)


def _best_pair(u: Tensor, v: Tensor, now: Tensor) -> Tensor:
    """(n, 2) the best pair; a block of first features meets all second ones."""
    n, length = u.shape
    best, chosen = u.new_zeros(n), now.new_full((n, 2), -1, dtype=torch.int64)
    features = torch.arange(length, device=u.device)
    for first in features.split(max(1, _BLOCK // max(1, n * length))):
        alpha = u[:, first, None] + u[:, None, :]
        beta = v[:, first, None] + v[:, None, :]
        fits = now[:, first, None] & now[:, None, :] & (first[:, None] < features)
        score = torch.where(fits & (alpha > 0) & (beta > 0), alpha * beta, 0).flatten(1)
        here, at = score.max(1)
        pair = torch.stack([first[at // length], at % length], 1)
        better = here > best
        best = torch.where(better, here, best)
        chosen = torch.where(better[:, None], pair, chosen)
    return chosen


def jsma_step(
    rows: Tensor,
    x: Tensor,
    open_features: Tensor,
    *,
    theta: float,
    pixels: int,
    bounds: Bounds,
) -> Tensor:
    """As `jsma_step_reference`, by the native kernel where there is one."""
    step = jsma_step_reference
    if native.has("jsma_step", rows, x, open_features):
        step = native_steps.jsma_step
    return step(rows, x, open_features, theta=theta, pixels=pixels, bounds=bounds)
