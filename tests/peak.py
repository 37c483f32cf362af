"""Memory of one penalty, in a process of its own: how far it raises the resident set.

    python tests/peak.py '{"shape": [3, 32, 32], "samples": 4, "classes": 100, ...}'

prints MiB, from the forward pass on to the peak of the penalty and its gradients.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path


def of_penalty(**case: object) -> float:
    """MiB that the penalty of a case takes at its peak above the forward pass.

    Args:
        case: ``width`` of the network of `build`, ``shape`` of a sample, ``samples``,
            ``classes``; and perhaps ``budget`` in MiB, ``best`` (MiB of rows that a
            chunk is made of for speed) and ``chunk``.
    """
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(case)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def resident(what: str) -> float:
    """MiB of the resident set: "VmRSS" now, "VmHWM" at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status).group(1)) / 1024


def _measure(case: dict) -> float:
    import torch
    from torch import nn

    import fastjac
    from fastjac import chunks

    torch.manual_seed(0)
    width, shape = case["width"], case["shape"]
    net = nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, case["classes"]),
    )  # fmt: skip
    x = torch.rand(case["samples"], *shape, requires_grad=True)
    fastjac.jacobian_penalty(net, x[:1, :, :8, :8]).backward()  # loads what is lazy
    if "best" in case:
        for table in (chunks.CHUNK_BYTES, chunks.DENSE_CHUNK_BYTES):
            table["cpu"] = case["best"] << 20
    if "budget" in case:
        fastjac.memory_budget(case["budget"] << 20)
    logits = net(x)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    penalty = fastjac.penalty_from_graph(
        logits, x, chunk=case.get("chunk", "auto"), backend="fused"
    )
    torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True)
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
