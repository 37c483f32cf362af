"""A penalty whose memory really runs out in the middle; prints what came of it.

The address space of this process is limited at the start of a chunk's push, so that
the next large allocation fails, and the limit is lifted when the failure is noticed:
a limit from the start would hit the first chunk, before there are any sums. Run with
MALLOC_MMAP_THRESHOLD_ set, so that freed memory is no reserve.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings

import oracle
import torch
from checks import take_path
from torch import nn

import fastjac
from fastjac import chunks, retry, sweep, workspace
from fastjac.linearization import Linearization

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Starving:
    """Takes away all memory at push number ``at``, and gives it back afterwards."""

    def __init__(self, at: int) -> None:
        self.at, self.pushes, self.failures = at, 0, 0
        self.chunks: list[int] = []
        self.push = sweep.push
        self.out_of_memory = retry.out_of_memory
        sweep.push = self.starve
        retry.out_of_memory = self.noticed

    def starve(self, network: Linearization, edges: object, samples: object, *args):
        self.pushes += 1
        rows, count = args[0].shape[:2]
        self.chunks.append(rows * count)
        if self.pushes == self.at:
            arena = workspace._local.arena
            del arena.blocks[arena.taken :]  # so that more has to be allocated
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), UNLIMITED[1]))
        return self.push(network, edges, samples, *args)

    def noticed(self, error: BaseException) -> bool:
        resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
        self.failures += 1
        return self.out_of_memory(error)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 8),
    ).double()  # fmt: skip


def step(net: nn.Module, x: torch.Tensor, **options: object):
    value = fastjac.jacobian_penalty(net, x, **options)
    return value.detach(), oracle.gradients(value, net.parameters())


def main(path: str, reduction: str, at: int, steps: int = 1, chunk: object = "auto"):
    torch.set_num_threads(1)
    net, x = network(), torch.rand(24, 3, 32, 32).double()
    with take_path(path):
        truth = step(net, x, reduction=reduction, chunk=8, backend="fused")
        for table in (chunks.CHUNK_BYTES, chunks.DENSE_CHUNK_BYTES):
            table["cpu"] = 64 * 8 * 9000
        starving = Starving(at)
        found: dict = {"raised": ""}
        options = {"reduction": reduction, "chunk": chunk, "backend": "fused"}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                for _ in range(steps):
                    value, gradients = step(net, x, **options)
            except (MemoryError, RuntimeError) as error:
                resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
                found["raised"] = str(error) or type(error).__name__
    found |= {
        "failures": starving.failures,
        "grad_enabled": torch.is_grad_enabled(),
        "warnings": [str(w.message) for w in said],
        "chunks": [starving.chunks[0], starving.chunks[-1]],
    }
    if not found["raised"]:
        found["value_error"] = oracle.error(value, truth[0])
        found["gradient_error"] = max(
            oracle.error(g, e) for g, e in zip(gradients, truth[1], strict=True)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
