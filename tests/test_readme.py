"""README.md says what is true: its code runs, its commands, names and output exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer

import fastjac
from fastjac import attacks, commands, models, native, robustness
from fastjac.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONSOLE = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
]
OURS = [command[1:] for command in CONSOLE if command[0] == "fastjac"]
# What the running text names is in backticks.
INLINE = re.findall(r"`fastjac ([a-z]+)([^`]*)`", README)


def group() -> dict:
    return typer.main.get_command(commands.app).commands


def write_idx(folder: Path) -> None:
    """Random images in the format of MNIST: 64 for training, 20 for the test."""
    folder.mkdir()
    for part, count in (("train", 64), ("t10k", 20)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        labels = (torch.arange(count) % 10).byte()
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
            content = bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(content)


def test_every_python_block_runs(capsys) -> None:
    """In order and in one namespace that holds what a training script has anyway."""
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    model = models.create("mnist", widths=(4, 8, 32))
    space = {
        "torch": torch,
        "F": F,
        "fastjac": fastjac,
        "lam": 0.1,
        "model": model,
        "x": x,
        "y": y,
        "loader": [(x.clone(), y), (x.clone(), y)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
    }
    assert len(PYTHON) >= 5
    for number, block in enumerate(PYTHON):
        exec(compile(block, f"README.md, Python block {number}", "exec"), space)
        assert torch.isfinite(space["loss"])
    shown = capsys.readouterr().out
    assert re.search(r"DeepFool: 0\.\d+ before, 0\.\d+ after", shown)
    assert "CumprodBackward0 has no fused rule" in shown


def test_the_commands_run_in_order(tmp_path, monkeypatch, capsys) -> None:
    write_idx(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    assert {command[0] for command in OURS} == set(group())
    for command in OURS:
        if command[0] in ("demo", "paper"):  # tests of their own run them
            continue
        takes = {o for p in group()[command[0]].params for o in p.opts}
        quiet = ["--no-progress"] if "--progress" in takes else []
        assert main([*command, *quiet]) == 0, command
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "report-hard" / "evaluation.json").exists()


def test_options_in_the_text_exist() -> None:
    known = {
        name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for name, command in group().items()
    }
    for name, rest in INLINE:
        assert name in known, f"README.md names `fastjac {name}`"
        assert set(re.findall(r"--[a-z-]+", rest)) <= known[name]
    for command in OURS:
        used = {word for word in command if word.startswith("--")}
        assert used <= known[command[0]], command
    alone = re.findall(r"`(--[a-z-]+)", README)
    report = set(re.findall(r"--[a-z]+", (ROOT / "bench" / "report.py").read_text()))
    assert {"--resume", "--checkpoint", "--out"} <= set(alone)
    assert set(alone) <= set.union(report, *known.values())


@pytest.mark.parametrize(
    ("prefix", "module"),
    [
        ("fastjac", fastjac),
        ("fastjac.attacks", attacks),
        ("fastjac.robustness", robustness),
    ],
)
def test_the_tables_hold_the_public_names_and_no_others(prefix, module) -> None:
    table = README.split(f"| `{prefix}.` | |\n")[1].split("\n\n")[0]
    named = {
        name
        for row in table.splitlines()[1:]
        for name in re.findall(r"`(\w+)", row.split("|")[1])
    }
    assert named == {name for name in module.__all__ if not name.startswith("__")}


def test_dotted_names_resolve() -> None:
    for name in set(re.findall(r"`(fastjac(?:\.\w+)+)", README)):
        where, _, last = name.rpartition(".")
        parent = importlib.import_module(where)
        assert hasattr(parent, last) or importlib.import_module(name)
    for name in ("open_dataset", "create", "save", "load"):
        assert f"`{name}`" in README
        assert hasattr(fastjac.data, name) or hasattr(models, name)


@pytest.mark.skipif(not native.available(), reason=f"{native.why_not()}")
def test_the_explanation_shown_is_the_one_printed(capsys) -> None:
    """Shares of live outputs to a few per cent: they are of random weights."""
    (shown,) = [text for language, text in BLOCKS if language == "text"]
    assert main(["explain", "--model", "mnist"]) == 0
    printed = capsys.readouterr().out
    share = re.compile(r"\d+(?=%)")
    number = re.compile(r"\d+(?=%)|[\d.]+ (?=[MG]FLOP)")
    assert number.sub("", printed).rstrip() == number.sub("", shown).rstrip()
    pairs = zip(share.findall(printed), share.findall(shown), strict=True)
    assert all(abs(int(now) - int(then)) <= 3 for now, then in pairs)


def test_make_targets_extras_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", *re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^cli = ", project, re.MULTILINE)
    assert re.search(r"^bench = ", project, re.MULTILINE)
    sources = (ROOT / "setup.py").read_text() + Path(native.__file__).read_text()
    rows = re.findall(r"^\| (`.+?) \| (?:build|run) \|", README, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([A-Z_]+)", row)]
    assert len(names) >= 7
    for name in names:
        assert name in sources, name
