"""How far random projections are from the exact squared norm, and how many to take.

python bench/projections.py            # digits, MNIST and a head of 100 classes

For one sample let A = J J^T, t = tr A = ||J||_F^2 and p = t^2 / tr(A^2), between 1 and
K: how many of the K directions carry the norm. With R directions v, scaled by K / R,
the estimate of t has the relative variance

    2 (K / p - 1) / (R (K + 2))                      independent unit vectors
    2 (K / p - 1) / (R (K + 2)) * (K - R) / (K - 1)  orthonormal ones

which this script compares with what it measures. Samples have directions of their own,
so over a batch of N the variance of the mean is N times smaller where norms are alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from nets import NETS
from torch import Tensor

import fastjac
from fastjac import seeds

SAMPLES = 16
DRAWS = 2000
CASES = [("digits", 10, (1, 2, 5, 9)), ("mnist", 10, (1, 5)), ("lenet5", 100, (1, 10))]


def independent(logits: Tensor, count: int) -> Tensor:
    """``count`` independent unit vectors a sample, (N, count, K)."""
    drawn = torch.randn(logits.shape[0], count, logits.shape[1], dtype=torch.float64)
    return F.normalize(drawn, dim=2)


def orthonormal(logits: Tensor, count: int) -> Tensor:
    """What ``projections=count`` takes."""
    return seeds.orthonormal_rows(logits, count, None).double()


def predicted(gram: Tensor, count: int, orthonormal: bool) -> Tensor:
    """The relative variance for each sample by the formulas above."""
    classes = gram.shape[-1]
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    p = trace.square() / gram.square().sum((1, 2))
    variance = 2 * (classes / p - 1) / (count * (classes + 2))
    return variance * (classes - count) / (classes - 1) if orthonormal else variance


def measured(
    gram: Tensor, count: int, draw: Callable[[Tensor, int], Tensor], draws: int
) -> Tensor:
    """The relative variance for each sample over many draws."""
    classes = gram.shape[-1]
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    estimates = []
    for _ in range(draws):
        v = draw(gram[:, 0], count)
        estimates.append(classes / count * torch.einsum("nrk,nkl,nrl->n", v, gram, v))
    return (torch.stack(estimates) / trace).var(0)


def grams(net: str, classes: int) -> Tensor:
    """J J^T of some samples, (N, K, K), in float64."""
    model = NETS[net].build(classes, torch.float64)
    x, _ = NETS[net].batch(SAMPLES, classes)
    rows = fastjac.jacobian(model, x.double()).detach().flatten(2)
    return rows @ rows.mT


def main() -> None:
    """Print a Markdown table of relative standard deviations a sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    draws = parser.parse_args().draws
    torch.manual_seed(0)
    print("| network | K | R | orthonormal | predicted | independent | predicted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for net, classes, counts in CASES:
        gram = grams(net, classes)
        for count in counts:
            cells = [
                variance.mean().sqrt().item()
                for variance in (
                    measured(gram, count, orthonormal, draws),
                    predicted(gram, count, True),
                    measured(gram, count, independent, draws),
                    predicted(gram, count, False),
                )
            ]
            line = " | ".join(f"{cell:.3f}" for cell in cells)
            print(f"| {net} | {classes} | {count} | {line} |")


if __name__ == "__main__":
    main()
