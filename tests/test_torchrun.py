"""`torchrun -m fastjac harden`: one run in several processes, ended and taken up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import fastjac
from fastjac import checkpoint as files
from fastjac import models
from fastjac.cli import main

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo here"
)
ROOT = Path(fastjac.__file__).resolve().parents[1]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(folder: Path, out: str, *options: str) -> subprocess.Popen[str]:
    """`torchrun -m fastjac harden` in two processes."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *LAUNCHER, "-m", "fastjac", *arguments(out, *options)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def arguments(out: str, *options: str) -> list[str]:
    given = ["--data", "digits", "--model-file", "plain.pt", "--out", out]
    return ["harden", *given, "--lam", "0.01", "--no-progress", *options]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    models.save(tmp_path / "plain.pt", models.create("digits"))
    return tmp_path


def started_training(process: subprocess.Popen[str], checkpoint: Path) -> None:
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def workers(process: subprocess.Popen[str]) -> Sequence[int]:
    """The processes that torchrun started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_two_processes_do_the_steps_of_one(folder: Path, capsys) -> None:
    process = start(folder, "two.pt", "--epochs", "1", "--device", "cpu")
    assert main(arguments("one.pt", "--epochs", "1", "--device", "cpu")) == 0
    alone = capsys.readouterr().out
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("written to two.pt") == said.count("test accuracy") == 1
    row = re.compile(r"^ +1 +22 .*", re.MULTILINE)  # epoch, steps, loss, CE, penalty
    (got,), (wanted,) = row.findall(said), row.findall(alone)
    assert got.split()[:6] == wanted.split()[:6]
    one, two = (models.load(folder / f"{name}.pt")[0] for name in ("one", "two"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not (folder / "two.pt.ckpt").exists()


def test_ctrl_c_saves_once_and_one_process_goes_on(folder: Path, capsys) -> None:
    options = ["--epochs", "10", "--checkpoint-every", "2"]
    process = start(folder, "c.pt", *options)
    started_training(process, folder / "c.pt.ckpt")
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode != 0
    assert said.count("saved to c.pt.ckpt") == 1, said
    hint = re.search(r"^  torchrun --nproc-per-node 2 -m fastjac (.+)$", said, re.M)
    assert hint is not None, said
    assert hint[1].split() == [*arguments("c.pt", *options), "--resume"]
    steps = files.load(folder / "c.pt.ckpt", "checkpoint")["position"]["steps"]
    assert main(hint[1].split()) == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
    assert 2 <= steps < 10 * 22


def test_a_killed_process_ends_all_with_a_message(folder: Path) -> None:
    process = start(folder, "k.pt", "--epochs", "300", "--checkpoint-every", "2")
    started_training(process, folder / "k.pt.ckpt")
    os.kill(workers(process)[-1], signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode != 0
    assert re.search(
        r"fastjac harden: error: (process 0 of 2 lost contact|told to)", said
    )
    assert "resume" in said and "exitcode  : -9" in said
    assert files.load(folder / "k.pt.ckpt", "checkpoint")["position"]["steps"] >= 2


def test_commands_of_one_process_say_so(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["info"]) == 2
    assert "info runs in one process; start it without torchrun" in (
        capsys.readouterr().err
    )
    monkeypatch.setenv("RANK", "1")
    assert main(["info"]) == 2
    assert capsys.readouterr().err == ""
