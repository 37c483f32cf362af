"""Hypothesis profiles, seeds, the real data folder and the paths under test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checks import PATHS, path_missing, take_path
from hypothesis import HealthCheck, settings
from tiny_paper import write_data

COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# CI repeats itself exactly; a developer's run explores; `thorough` explores far.
settings.register_profile("ci", derandomize=True, **COMMON)
settings.register_profile("dev", **COMMON)
settings.register_profile("thorough", max_examples=3000, **COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, with one thread.

    The tensors are tiny, so that a second thread only costs; tests of threads ask for
    them.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the native kernels and again with torch operators only."""
    if reason := path_missing(request.param):
        pytest.skip(reason)
    with take_path(request.param):
        yield request.param


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with mnist/, fashion-mnist/ and cifar-10/, or a visible skip."""
    named = os.environ.get("FASTJAC_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no real data: {folder}/mnist is missing (set FASTJAC_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mnist/`, files of a few small images."""
    folder = tmp_path_factory.mktemp("tiny") / "mnist"
    write_data(folder)
    return folder.parent
