"""The command line: what it does, and how it ends when something is wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

import fastjac
from fastjac import checkpoint, models
from fastjac.cli import main
from fastjac.commands.steps import interruptible

ROOT = Path(fastjac.__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "fastjac", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "net.pt"
    command = ["train", "--data", "digits", "--model", "digits", "--out", str(path)]
    assert main([*command, "--epochs", "4", "--no-progress"]) == 0
    return path


def test_train_harden_evaluate(trained, tmp_path, capsys):
    hardened = tmp_path / "hard.pt"
    command = ["harden", "--data", "digits", "--model-file", str(trained)]
    options = ["--lam", "0.005", "--lr", "1e-3", "--epochs", "2", "--no-progress"]
    assert main([*command, *options, "--out", str(hardened)]) == 0
    assert re.search(r"test accuracy 9\d\.\d\d%", capsys.readouterr().out)
    assert not hardened.with_name("hard.pt.ckpt").exists()

    def rho(path):
        folder = tmp_path / path.stem
        command = ["evaluate", "--data", "digits", "--model-file", str(path)]
        options = ["--limit", "100", "--no-progress", "--out", str(folder)]
        assert main([*command, *options]) == 0
        numbers = json.loads((folder / "evaluation.json").read_text())
        assert numbers["samples"] == 100
        assert f"{numbers['rho_adv']:.4f}" in capsys.readouterr().out
        assert len(list(folder.glob("*.png"))) >= 2
        return numbers["rho_adv"]

    assert rho(hardened) > rho(trained)


def test_harden_writes_beside_the_model_by_default(trained):
    command = ["harden", "--data", "digits", "--model-file", str(trained)]
    assert main([*command, "--epochs", "1", "--penalty", "none", "--no-progress"]) == 0
    network, notes = models.load(trained.with_name("net-hardened.pt"))
    assert network.name == "digits" and notes["command"].startswith("fastjac harden")


@pytest.mark.parametrize("penalty", ["cross-lipschitz", "input-gradient"])
def test_other_penalties_and_fgsm(trained, tmp_path, penalty):
    out = tmp_path / "net.pt"
    command = ["harden", "--data", "digits", "--model-file", str(trained)]
    options = ["--penalty", penalty, "--lam", "1e-6", "--adversarial", "0.5"]
    limits = ["--epochs", "1", "--no-progress", "--out", str(out)]
    assert main([*command, *options, *limits]) == 0
    before, after = models.load(trained)[0], models.load(out)[0]
    assert not torch.equal(before[0].weight, after[0].weight)


def test_own_idx_set_of_other_size_and_classes(tmp_path, monkeypatch, capsys):
    for part, count in (("train", 60), ("t10k", 20)):
        labels = torch.arange(count) % 12
        images = (labels[:, None, None] * 20 + torch.randint(9, (count, 5, 7))).byte()
        for name, values in (("images-idx3", images), ("labels-idx1", labels.byte())):
            sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
            content = bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()
            (tmp_path / f"{part}-{name}-ubyte").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", ".", "--model", "mlp", "--widths", "32"]
    assert main([*command, "--out", "a.pt", "--epochs", "2", "--no-progress"]) == 0
    network, _ = models.load("a.pt")
    assert network(torch.zeros(1, 1, 5, 7)).shape == (1, 12)
    ten = models.create("mlp", shape=(1, 5, 7), widths=(8,))
    models.save("ten.pt", ten)
    assert main(["harden", "--data", ".", "--model-file", "ten.pt"]) == 2
    assert "it has 12 classes, the network gives 10" in capsys.readouterr().err


def test_demo_quick(tmp_path, capsys):
    assert main(["demo", "--quick", "--no-progress", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "rho_adv under DeepFool" in shown and "demo.png" in shown
    numbers = json.loads((tmp_path / "demo.json").read_text())
    assert f"{numbers['after']['rho_adv']:.3f}" in shown


def test_info(capsys):
    assert main(["info"]) == 0
    assert fastjac.__version__ in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == fastjac.__version__


def test_explain_names_the_layers(trained, capsys):
    assert main(["explain", "--model", "digits", "--batch-size", "2"]) == 0
    fresh = capsys.readouterr().out
    assert "conv" in fresh.lower()
    command = ["explain", "--model-file", str(trained), "--data", "digits"]
    assert main([*command, "--batch-size", "2"]) == 0
    assert "conv" in capsys.readouterr().out.lower()


def test_no_command_and_help_show_the_commands(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for name in ("demo", "train", "harden", "evaluate", "explain", "info"):
            assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nope", "No such command 'nope'"),
        ("train", "Missing option '--data'"),
        ("harden --lam much", "--lam"),
        ("train --data D --model mnist --out o.pt", "there is no folder D"),
        ("train --data digits --model m --out o.pt", r"name \(='m'\)"),
        ("train --data digits --model mnist --out o.pt", "takes 1x28x28"),
        ("train --data digits --model digits --out o.pt --epochs 0", "--epochs"),
        ("train --data digits --model digits --out o.pt --lr 0", r"lr \(=0\.0\)"),
        ("train --data digits --model digits --out o.pt --widths a", "whole numbers"),
        ("train --data digits --model digits --out o.pt --resume", "no checkpoint at"),
        ("train --data digits --model digits --out o.pt --device tpu9", "--device"),
        ("train --data digits --model digits --out o.pt --nope", "No such option"),
        ("harden --data digits --model-file no.pt", "'no.pt' does not exist"),
        ("harden --data digits --model-file net.pt --lam -1", "--lam"),
        ("harden --data digits --model-file net.pt --penalty p", "'p' is not one of"),
        ("harden --data digits --model-file net.pt --adversarial 2", "--adversarial"),
        ("harden --data digits --model-file net.pt --reduction r", "reduction"),
        ("harden --data digits --model-file net.pt --projections 11", "projections"),
        ("explain", "give one of the two"),
        ("demo extra", "extra"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_code_2(
    arguments, message, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pt").write_bytes(trained.read_bytes())
    given = [*shlex.split(arguments)]
    if given[0] in ("train", "harden"):
        given.append("--no-progress")
    assert main(given) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if "error:" in line]
    assert said[-1:] == errors and re.search(message, errors[0])
    assert errors[0].startswith("fastjac") and not any("Traceback" in s for s in said)


def test_damaged_files_end_with_one_line_and_code_1(trained, tmp_path, capsys):
    torn = tmp_path / "net.pt"
    torn.write_bytes(trained.read_bytes()[:1000])
    assert main(["evaluate", "--data", "digits", "--model-file", str(torn)]) == 1
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"what is this")
    command = ["evaluate", "--model-file", str(trained), "--data", str(tmp_path)]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastjac evaluate: error:") and "has no file" in line


def test_divergence_ends_with_one_line_and_code_1(tmp_path, capsys):
    command = ["train", "--data", "digits", "--model", "digits", "--lr", "1e20"]
    assert main([*command, "--out", str(tmp_path / "a.pt"), "--no-progress"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in line and "lower the learning rate" in line
    assert not (tmp_path / "a.pt").exists()


def test_ctrl_c_prints_the_command_that_goes_on(tmp_path):
    options = ["--data", "digits", "--model", "digits", "--out", "a net.pt"]
    options += ["--epochs", "40", "--checkpoint-every", "1", "--no-progress"]
    process = start("train", *options, cwd=tmp_path)
    saved = tmp_path / "a net.pt.ckpt"
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    command = shlex.split(said.splitlines()[-1])
    assert command == ["fastjac", "train", *options, "--resume"]
    steps = checkpoint.load(saved, "checkpoint")["position"]["steps"]
    assert steps >= 1

    again = start(*[a for a in command[1:] if a != "--resume"], cwd=tmp_path)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 2 and "add --resume" in said

    resumed = start(*command[1:], cwd=tmp_path)
    out, said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert "test accuracy" in out and (tmp_path / "a net.pt").exists()
    assert not saved.exists()


def test_importing_fastjac_loads_none_of_the_extras():
    extras = ["matplotlib", "typer", "sklearn", "rich"]
    code = f"import sys, fastjac; print([m for m in {extras} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def without(package: str, command: str) -> subprocess.CompletedProcess:
    """Run a command where a package of the extra is not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from fastjac.cli import main; sys.exit(main([{command!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_extra_is_named(package):
    run = without(package, "demo")
    assert run.returncode == 1
    assert f"need {package}: pip install 'fastjac[cli]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_info_needs_no_extra():
    run = without("typer", "info")
    assert run.returncode == 0, run.stderr
    assert "instruction sets" in run.stdout


def test_ctrl_c_says_that_work_is_saved_only_where_it_is(tmp_path, capsys):
    state = tmp_path / "state.ckpt"
    for there, told in ((False, "nothing was saved"), (True, "it goes on")):
        if there:
            state.touch()
        with pytest.raises(typer.Exit) as left, interruptible("it goes on", state):
            raise KeyboardInterrupt
        assert left.value.exit_code == 130
        assert capsys.readouterr().err.strip() == f"interrupted: {told}"
