"""Each pass of a gated convolution a few times, for a profiler to look at."""

from __future__ import annotations

import kernels

if __name__ == "__main__":
    for direction in ("pull", "push", "weight"):
        print(
            direction, f"{kernels.conv2(direction, 500, 'cuda', rounds=1):.0f} GFLOP/s"
        )
