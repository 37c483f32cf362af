"""The tests of the gated kernels, on every instruction set that this machine can run.

The whole suite runs on the best of them; each lesser one needs a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastjac import native

HERE = Path(__file__).parent
GATED = ("few_channels", "head", "live_below", "live_inputs", "live_rows", "max_pools")


@pytest.mark.parametrize("isa", native.supported_isas()[:-1])
def test_gated_kernels(isa: str) -> None:
    files = [str(HERE / f"test_{name}.py") for name in GATED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "FASTJAC_ISA": isa},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
