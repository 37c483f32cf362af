"""Penalties of a batch that two processes hold: DistributedDataParallel and FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import parallel_checks
import pytest
import torch
import torch.distributed as dist
from nets import images, small_conv

import fastjac

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process says of each check, "" for good; one start for all checks."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("parallel")
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    results = [folder / f"{rank}.json" for rank in range(parallel_checks.WORLD)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "parallel_checks.py",
                str(rank),
                folder / "store",
                result,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, result in enumerate(results)
    ]
    said = [process.communicate()[0] for process in processes]
    for result, output in zip(results, said, strict=True):
        assert result.exists(), output
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.parametrize("name", parallel_checks.CHECKS)
def test_in_two_processes(name: str, outcomes: list[dict[str, str]]) -> None:
    if name.startswith("fsdp") and not parallel_checks.has_fsdp():
        pytest.skip("fully_shard of this torch does not run on a CPU")
    for rank, found in enumerate(outcomes):
        assert name in found, f"not run: an earlier check ended process {rank}"
        assert not found[name], f"process {rank}: {found[name]}"


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ("world", RuntimeError, "torch.distributed is not initialised"),
        ("all", ValueError, "`process_group` must be .*'world'.* got 'all'"),
        (3, RuntimeError, "torch.distributed is not initialised"),
    ],
)
def test_a_group_without_torch_distributed_is_an_error(group, error, message) -> None:
    calls = [
        lambda: fastjac.jacobian_penalty(small_conv(), x, process_group=group),
        lambda: fastjac.cross_lipschitz_penalty(small_conv(), x, process_group=group),
    ]
    x = images(dtype=torch.float32)
    for call in calls:
        with pytest.raises(error, match=message):
            call()
