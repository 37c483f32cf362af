r"""As many rows as the last hidden layer is wide, where there are more classes.

Let ``W`` be the last layer (or the product of the last linear ones), (K, H), and ``A``
what lies below it, so that the rows of all samples are ``S W A`` with R seeds ``S``.
With R > H a thin QR factorisation ``S W = Q F`` gives Q, (R, H), orthonormal columns:

    ||S W A||^2 = ||Q^T S W A||^2

so the H seeds ``S' = Q^T S`` carry the same squared norms as the R seeds S. With Q held
constant the gradients are the same too. That of ``W`` is

    2 S'^T S' W A A^T = 2 S^T Q Q^T S W A A^T = 2 S^T S W A A^T

because ``Q Q^T`` leaves everything in the range of ``S W`` as it is; and a weight below
sees only ``(S' W)^T S' W = W^T S^T S W``. Nothing is divided by, so a ``W`` of lower
rank is no special case.
"""

from __future__ import annotations

from itertools import takewhile

import torch
from torch import Tensor

from fastjac import native
from fastjac.linearization import Linearization
from fastjac.rules.dense_head import DenseHead
from fastjac.rules.head import GatedHead
from fastjac.rules.linear import Linear
from fastjac.seeds import is_identity

#: Multiply-adds of the sweep that take as long as one of the factorisation, which is in
#: float64. Measured on a CPU (bench/NOTES.md); on a GPU, where the sweep is so much
#: faster than a factorisation, an estimate on the safe side.
PRICE = {"cpu": 3.0, "cuda": 300.0}
#: What starting it takes, in its own multiply-adds.
START = 10e6


def fewer_rows(linearization: Linearization, seeds: Tensor) -> Tensor:
    """Return seeds with the same sums of squared rows, fewer of them if that pays.

    Args:
        linearization: the network at its input.
        seeds: (R, K) or (N, R, K).

    Returns:
        (H, K), or the given seeds where there is nothing to gain: if they carry
        gradient, or differ between samples, or are no more than H already.
    """
    if seeds.dim() != 2 or seeds.requires_grad:
        return seeds
    layers = _last_layers(linearization)
    rows, width = seeds.shape[0], min((w.shape[1] for w in layers), default=0)
    if not 0 < width < rows or not _pays(linearization, rows, width):
        return seeds
    with torch.no_grad():
        exact = None if _is_identity(seeds) else seeds.double()
        product = exact
        for weight in layers:
            exactly = weight.double()
            product = exactly if product is None else product @ exactly
            if weight.shape[1] == width:
                break
        columns = torch.linalg.qr(product)[0].t()
        fewer = columns if exact is None else columns @ exact
        return fewer.to(linearization.dtype)


def _last_layers(linearization: Linearization) -> list[Tensor]:
    """Return the weights of the linear layers just below the logits, last one first."""
    ending = [e for e in linearization.edges if e.target == linearization.target]
    if len(ending) != 1:
        return []
    rules = ending[0].rules
    if rules and isinstance(rules[-1], GatedHead | DenseHead):
        return [rules[-1].logits.weight]
    linear = takewhile(lambda rule: isinstance(rule, Linear), reversed(rules))
    return [rule.weight for rule in linear if isinstance(rule, Linear)]


def _is_identity(seeds: Tensor) -> bool:
    """Whether products with the seeds can be left out; a GPU is not waited for."""
    if is_identity(seeds):
        return True
    if native.waits(seeds) or seeds.shape[0] != seeds.shape[1]:
        return False
    return torch.equal(seeds, torch.eye(len(seeds), dtype=seeds.dtype))


def _pays(linearization: Linearization, rows: int, width: int) -> bool:
    """Whether the rows saved cost more, pulled, pushed and contracted, than Q does."""
    a_row = 3 * sum(rule.multiplications for rule in linearization.rules)
    price = PRICE.get(linearization.device.type, PRICE["cuda"])
    work = 2 * rows * width * width
    return (rows - width) * a_row > price * (work + START)
