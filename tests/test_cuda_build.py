"""The CUDA half as it was really built: what nvcc said, and what the module holds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastjac import native
from fastjac.build import build_info

ROOT = Path(__file__).resolve().parents[1]

# Bytes that a kernel may spill to local memory, for those that may at all.
SPILLS: dict[str, int] = {}

# Kernels that take rows in 16 bits too, and how those types are mangled.
TAKE_HALF = {
    *(f"gated_conv_{name}_kernel" for name in ("pull", "push", "weight")),
    *(f"{name}_live_kernel" for name in ("gather", "scatter")),
    *(f"{name}_norms_kernel" for name in ("piece", "sample", "finish")),
}
HALF = ("4Half", "8BFloat16")


@pytest.fixture(autouse=True)
def needs_cuda_build() -> None:
    if not native.available():
        pytest.skip(f"no native module: {native.why_not()}")
    if not build_info().cuda_architectures:
        pytest.skip(str(build_info().cuda_why_not))


def kernels_in_source() -> set[str]:
    text = "".join(p.read_text() for p in (ROOT / "csrc/cuda").glob("*.cuh"))
    return set(
        re.findall(r"__global__ void (?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", text)
    )


def binary_architectures() -> set[str]:
    """Those with machine code, such as sm_90."""
    numbers = (a.removesuffix("+PTX") for a in build_info().cuda_architectures)
    return {f"sm_{number.replace('.', '')}" for number in numbers}


def kernel_of(mangled: str) -> str:
    """The longest of the known names that the mangled one holds, or itself."""
    known = [k for k in kernels_in_source() if f"{len(k)}{k}" in mangled]
    return max(known, key=len, default=mangled)


def test_no_kernel_spills_registers() -> None:
    logs = sorted(
        ROOT.glob(f"build/temp.*{sys.implementation.cache_tag}*/native/*.cuda.o.log")
    )
    if not logs:
        pytest.skip("no build folder: the module was installed, not built here")
    entry = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'\n"
        r".*\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes"
    )
    seen = set()
    for log in logs:
        for mangled, architecture, _, stores, loads in entry.findall(log.read_text()):
            kernel = kernel_of(mangled)
            seen.add((kernel, architecture))
            allowed = SPILLS.get(kernel, 0)
            spilled = max(int(stores), int(loads))
            assert spilled <= allowed, f"{kernel} spills {spilled} on {architecture}"
    assert seen == {(k, a) for k in kernels_in_source() for a in binary_architectures()}


def cuobjdump(*arguments: str) -> str:
    """What cuobjdump, from the toolkit or from its pip package, says of the module."""
    packaged = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump")
    program = shutil.which("cuobjdump") or next(map(str, packaged), None)
    if program is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump")
    # It starts nvdisasm, which its own package puts into the same folder.
    folder = str(Path(program).resolve().parent)
    path = f"{folder}:{os.environ['PATH']}"
    if "--dump-sass" in arguments and not shutil.which("nvdisasm", path=path):
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    done = subprocess.run(
        [program, *arguments, native.module().__file__],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    return done.stdout


def test_the_module_holds_every_kernel_in_its_types_for_every_architecture() -> None:
    found = set()
    architecture = ""
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        if match := re.search(r"Function (\w+):", line):
            kernel = kernel_of(match[1])
            kind = re.search(rf"{kernel}I(?:\w*_)?([fd]|4Half|8BFloat16)[EL]", match[1])
            found.add((kernel, kind[1] if kind else "", architecture))
    wanted = {
        (kernel, kind, architecture)
        for kernel in kernels_in_source()
        for kind in ("f", "d", *(HALF if kernel in TAKE_HALF else ()))
        for architecture in binary_architectures()
    }
    assert found >= wanted, f"missing: {sorted(wanted - found)}"


def test_gated_convolutions_load_16_bytes_and_multiply_and_add_in_one() -> None:
    """The inner loops are what the roofline in bench/NOTES.md counts on."""
    architecture = max(binary_architectures() & {"sm_80", "sm_90"}, default=None)
    if architecture is None:
        pytest.skip("built for neither sm_80 nor sm_90")
    text = cuobjdump("--dump-sass", "--gpu-architecture", architecture)
    seen = set()
    for body in text.split("Function : ")[1:]:
        mangled = body.split(maxsplit=1)[0]
        if not re.search(r"gated_conv_\w+_kernelIfLi10ELi4E", mangled):
            continue
        kernel = kernel_of(mangled)
        seen.add(kernel)
        assert len(re.findall(r"\bLDG\.E\.128", body)) >= 4, kernel
        assert len(re.findall(r"\bFFMA\b", body)) >= 40, kernel
        assert not re.search(r"\b(LDL|STL)\b", body), f"{kernel} uses local memory"
    assert seen == {f"gated_conv_{name}_kernel" for name in ("pull", "push", "weight")}


def test_the_module_holds_ptx_for_what_comes_after() -> None:
    wanted = {
        f"sm_{arch.removesuffix('+PTX').replace('.', '')}"
        for arch in build_info().cuda_architectures
        if arch.endswith("+PTX")
    }
    listed = set(re.findall(r"\.(sm_\d+\w?)\.ptx", cuobjdump("--list-ptx")))
    assert listed == wanted
