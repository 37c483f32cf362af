"""Seeds: the combinations of logits whose gradients a penalty adds up."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac.checks import check_labels
from fastjac.precision import wide


def jacobian(
    logits: Tensor,
    class_weights: Tensor | None = None,
    projections: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return seeds of the Jacobian penalty: (K, K), or (N, R, K) projections.

    ``E[S^T S] = diag(w)``: exactly so with all K rows, in expectation with fewer. Every
    sample has projections of its own, so that their errors average out over a batch.
    """
    classes = logits.shape[1]
    if projections is None:
        chosen = identity(classes, wide(logits.dtype), logits.device)
    else:
        chosen = orthonormal_rows(logits, projections, generator)
        chosen = chosen * (classes / projections) ** 0.5
    if class_weights is not None:
        chosen = chosen * class_weights.sqrt()
    return chosen


#: Kept by (K, dtype, device); larger ones would hold on to memory.
_kept: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
LARGEST_KEPT, MOST_KEPT = 1024, 16


def identity(classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return seeds of all classes, (K, K), mostly the same tensor; never change it."""
    kept = _kept.get((classes, dtype, device))
    if kept is not None:
        return kept
    with torch.inference_mode(False):
        seeds = torch.eye(classes, dtype=dtype, device=device)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if classes <= LARGEST_KEPT and len(_kept) < MOST_KEPT and not capturing:
        # Memory from the capture of a graph would be the graph's own. Other streams
        # will use this one as it is, so this once it is waited for.
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        _kept[classes, dtype, device] = seeds
    return seeds


def is_identity(seeds: Tensor) -> bool:
    """Whether seeds are one of those that `identity` keeps, without looking inside."""
    return seeds is _kept.get((seeds.shape[-1], seeds.dtype, seeds.device))


def combination(seeds: Tensor, of: Tensor) -> Tensor | None:
    """Return h, (N, R), with ``h S = of`` (N, K) for seeds S (R, K); None if it fails.

    For seeds whose rows are orthogonal, as they are but for random projections, ``h_r =
    <of, S_r> / ||S_r||^2``; what remains says whether that was all.
    """
    if is_identity(seeds):
        return of
    if seeds.dim() != 2 or seeds.requires_grad:
        return None
    exact = seeds.double()
    squares = exact.square().sum(1)
    parts = of.double() @ exact.t() / torch.where(squares > 0, squares, 1.0)
    left = (of - parts @ exact).abs().max()
    enough = left <= 32 * torch.finfo(of.dtype).eps * of.abs().max()
    return parts.to(seeds.dtype) if enough else None


def orthonormal_rows(
    logits: Tensor, count: int, generator: torch.Generator | None
) -> Tensor:
    """Return orthonormal rows for each sample, uniform (Haar), (N, count, K)."""
    device = logits.device if generator is None else generator.device
    samples, classes = logits.shape
    normal = torch.randn(
        samples,
        classes,
        count,
        dtype=torch.float64,
        device=device,
        generator=generator,
    )
    q, r = torch.linalg.qr(normal)
    # QR is unique up to signs; Haar measure needs the diagonal of R positive.
    signs = torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).unsqueeze(1)
    return (q * signs).mT.to(device=logits.device, dtype=wide(logits.dtype))


def cross_lipschitz(logits: Tensor) -> Tensor:
    """Return (K - 1, K) seeds with ``S^T S = 2 (K I - 1 1^T)``.

    They are ``sqrt(2 K)`` times the Helmert contrasts, an orthonormal basis of the
    complement of the ones vector: row r has r equal entries and one that balances them.
    For K = 1 there are no pairs; one zero row stands for that.
    """
    classes = logits.shape[1]
    if classes == 1:
        return logits.new_zeros(1, 1)
    order = torch.arange(1, classes, dtype=torch.float64, device=logits.device)
    contrasts = torch.ones(
        classes - 1, classes, dtype=torch.float64, device=logits.device
    ).tril()
    contrasts.diagonal(1).copy_(-order)
    contrasts = contrasts / (order * (order + 1)).sqrt().unsqueeze(1)
    return (contrasts * (2 * classes) ** 0.5).to(wide(logits.dtype))


def input_gradient(y: Tensor, logits: Tensor) -> Tensor:
    """Return (N, 1, K) seeds ``softmax(z) - onehot(y)``, which carry gradient."""
    check_labels(y, logits)
    probabilities = logits.to(wide(logits.dtype)).softmax(1)
    # F.one_hot looks at the labels, and whoever looks waits for the device.
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (probabilities - (y.unsqueeze(1) == classes).to(probabilities)).unsqueeze(1)


def hoffman(count: int, logits: Tensor) -> Tensor:
    """Return (N, R, K) random unit vectors a sample times ``sqrt(K / R)``.

    They are drawn as in the package of Hoffman et al. (2019), so that one seed of the
    random number generator gives both libraries the same projections.
    """
    samples, classes = logits.shape
    scale = (classes / count) ** 0.5
    if classes == 1:
        return logits.new_ones(samples, count, 1) * scale
    drawn = []
    for _ in range(count):
        vector = torch.randn(samples, classes)
        drawn.append(vector / vector.norm(2, 1, keepdim=True))
    return torch.stack(drawn, 1).to(logits.device, wide(logits.dtype)) * scale
