"""The native module: instruction sets, threads, and what happens without it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastjac
from fastjac import native, native_norms
from fastjac._version import __interface__

ROOT = Path(__file__).resolve().parents[1]
ISAS = ("baseline", "avx2", "avx512")


def run(
    code: str, cwd: Path | None = None, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with some environment variables."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("FASTJAC_")}
    settings = {k: v for k, v in (base | env).items() if v is not None}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env=settings,
        cwd=cwd or ROOT,
        check=False,
    )


def needs_native() -> None:
    if not native.available():
        pytest.skip(f"no native module: {native.why_not()}")


# ---- without the native module

PENALTY = """
import torch, fastjac, fastjac.native as native
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(), torch.nn.Linear(27, 4)).double()
x = torch.randn(5, 1, 8, 8).double()
penalty = fastjac.jacobian_penalty(model, x)
print(native.available(), repr(native.why_not()), penalty.item())
"""


def penalty_in(done: subprocess.CompletedProcess[str]) -> float:
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_native_can_be_turned_off_in_silence() -> None:
    done = run(PENALTY, FASTJAC_DISABLE_NATIVE="1")
    assert done.stdout.startswith("False 'FASTJAC_DISABLE_NATIVE is set'")
    assert "native" not in done.stderr
    assert penalty_in(done) == pytest.approx(penalty_in(run(PENALTY)), rel=1e-12)


# An editable install would find its own native module for the copy.
NO_EDITABLE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
"""


def copy_of_package(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "fastjac",
        tmp_path / "fastjac",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path / "fastjac"


@pytest.mark.parametrize("damage", ["missing", "broken", "of another version", "old"])
def test_a_damaged_native_module_warns_once_and_torch_takes_over(
    tmp_path: Path, damage: str
) -> None:
    needs_native()
    package = copy_of_package(tmp_path)
    (built,) = package.glob("_native*.so")
    if damage == "missing":
        built.unlink()
        reason = "No module named 'fastjac._native'"
    elif damage == "broken":
        built.write_bytes(b"not a library " * 1000)
        reason = "invalid ELF header"
    elif damage == "old":
        version = (package / "_version.py").read_text()
        now = f'__interface__ = "{__interface__}"'
        assert now in version
        newer = version.replace(now, '__interface__ = "9999"')
        (package / "_version.py").write_text(newer)
        reason = f"old build of this .* number {__interface__}, this source needs 9999"
    else:
        version = f'__version__ = "99.0"\n__interface__ = "{__interface__}"\n'
        (package / "_version.py").write_text(version)
        reason = f"it was built from version {fastjac.__version__}, this is 99.0"
    done = run(NO_EDITABLE + PENALTY, cwd=tmp_path)
    assert done.stdout.startswith("False")
    warnings = re.findall("RuntimeWarning: .*", done.stderr)
    assert len(warnings) == 1, done.stderr
    assert "fastjac runs without its native kernels" in warnings[0]
    assert re.search(reason, warnings[0]), warnings[0]
    assert "pip install" in warnings[0]
    assert penalty_in(done) == pytest.approx(penalty_in(run(PENALTY)), rel=1e-12)


# ---- instruction sets and threads


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_can_be_chosen_and_agrees(isa: str) -> None:
    needs_native()
    if isa not in native.supported_isas():
        pytest.skip(f"this machine cannot run {isa}")
    code = """
import torch, fastjac.native as native, fastjac.native_norms as native_norms
rows = torch.arange(1, 1 + 3 * 2 * 20011, dtype=torch.float32).reshape(3, 2, -1).sin()
print(native.isa(), *native_norms.squared_norms(rows).tolist())
"""
    done = run(code, FASTJAC_ISA=isa)
    assert done.returncode == 0, done.stderr
    name, *norms = done.stdout.split()
    rows = torch.arange(1, 1 + 3 * 2 * 20011, dtype=torch.float32).reshape(3, 2, -1)
    expected = rows.sin().double().square().sum((0, 2))
    assert name == isa
    np.testing.assert_allclose([float(n) for n in norms], expected, rtol=1e-13)


def test_an_unknown_instruction_set_is_an_error_that_lists_the_known_ones() -> None:
    needs_native()
    done = run("import fastjac", FASTJAC_ISA="sse9")
    assert done.returncode != 0
    assert "FASTJAC_ISA=sse9: unknown; expected baseline, avx2 or avx512" in done.stderr


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_an_instruction_set_that_the_processor_lacks_is_an_error(
    tmp_path: Path, isa: str
) -> None:
    # The real choice, compiled for a processor that says no to every question.
    program = tmp_path / "program"
    source = tmp_path / "main.cpp"
    source.write_text(
        '#include "cpu/dispatch.h"\n#include <cstdio>\n#include <exception>\n'
        "int main() { try { std::puts(fastjac::isa_name(fastjac::isa())); }\n"
        "catch (const std::exception& e) { std::puts(e.what()); return 3; } }\n"
    )
    subprocess.run(
        [
            *(os.environ.get("CXX", "g++"), "-std=c++17", f"-I{ROOT / 'csrc'}"),
            *("-D__builtin_cpu_supports(x)=0", str(source)),
            *(str(ROOT / "csrc" / "cpu" / "dispatch.cpp"), "-o", str(program)),
        ],
        check=True,
    )

    def choice(wish: str) -> tuple[int, str]:
        done = subprocess.run(
            [program],
            env={**os.environ, "FASTJAC_ISA": wish},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert choice("") == (0, "baseline\n")
    assert choice("baseline") == (0, "baseline\n")
    code, text = choice(isa)
    assert code == 3
    assert f"FASTJAC_ISA={isa}: this processor" in text
    assert "the best it supports is baseline; unset FASTJAC_ISA" in text


def test_kernels_run_on_the_threads_that_torch_is_given() -> None:
    needs_native()
    code = """
import torch, fastjac.native as native
for count in (1, 3, 2):
    torch.set_num_threads(count)
    print(native.thread_count(), end=" ")
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    # The last number: one OpenMP runtime is loaded, not two side by side.
    assert done.stdout.split() == ["1", "3", "2", "1"]


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    row_count=st.integers(0, 7),
    samples=st.integers(0, 5),
    row_length=st.one_of(st.integers(0, 70), st.integers(8180, 8200)),
    weighted=st.booleans(),
)
def test_squared_norms_are_exact_and_do_not_depend_on_threads(
    seed, dtype, row_count, samples, row_length, weighted
) -> None:
    needs_native()
    torch.manual_seed(seed)
    rows = torch.randn(row_count, samples, row_length, dtype=dtype)
    weights = torch.rand(row_count, dtype=torch.float64) if weighted else None
    factors = torch.ones(row_count).double() if weights is None else weights
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native_norms.squared_norms(rows, weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)
    squares = rows.double().square().sum(2)
    torch.testing.assert_close(results[0], factors @ squares, rtol=1e-13, atol=0)


# ---- the objects that were linked, see csrc/cpu/dispatch.h


def native_build_folder() -> Path:
    folders = sorted(ROOT.glob(f"build/temp.*{sys.implementation.cache_tag}*/native"))
    if not folders:
        pytest.skip("no build folder: the module was installed, not built here")
    return folders[-1]


def test_greater_instruction_sets_are_linked_after_lesser_ones() -> None:
    text = (native_build_folder() / "build.ninja").read_text()
    (line,) = re.findall(r"^build _native.so: link (.*)$", text, re.MULTILINE)
    ranks = [
        next((i for i, isa in enumerate(ISAS, 1) if f".{isa}." in name), 0)
        for name in line.split()
    ]
    assert ranks == sorted(ranks)
    assert set(ranks) >= {0, 1}


@pytest.mark.parametrize("isa", ISAS)
def test_kernel_objects_neither_leak_code_nor_run_any_at_import(isa: str) -> None:
    objects = sorted(native_build_folder().glob(f"*.{isa}.o"))
    if not objects:
        pytest.skip(f"not built for {isa}")
    for path in objects:
        sections = subprocess.run(
            ["objdump", "-h", path], capture_output=True, text=True, check=True
        ).stdout
        assert ".init_array" not in sections, f"{path.name} has a global constructor"
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", "--extern-only", path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for symbol in symbols.splitlines():
            kind, name = symbol.split(maxsplit=2)[1:]
            shared = kind in "VWu" and "fastjac::" not in name
            assert shared or f"fastjac::{isa}::" in name, f"{path.name}: {symbol}"
