"""Builds the native module fastjac._native with ninja. No torch is needed to build.

Environment variables:
    MAX_JOBS              compile at most so many files at once
    CXX, CXXFLAGS, LDFLAGS  compiler (default g++) and flags to add
    CUDA_HOME, CUDA_PATH  toolkit to use; else the nvcc on PATH says where it is
    FORCE_CUDA=1          without a usable CUDA toolkit, fail
    FASTJAC_NO_CUDA=1     build without CUDA even if there is a toolkit
    FASTJAC_BUILD_DIR     where the objects are kept, default build/temp.*
    TORCH_CUDA_ARCH_LIST  e.g. "8.0;9.0+PTX"; default 8.0, 9.0 and, if the compiler
                          has it, 10.0, with PTX of the last
"""

import filecmp
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
# What is named in sources.txt of the sdist and watched by setuptools.
MODULE = Extension("fastjac._native", sources=["csrc/bindings.cpp"])

CPU_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-DNDEBUG",
    "-Wall",
    "-Wextra",
]
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        *("-mavx2", "-mfma", "-mprefer-vector-width=512"),
    ],
}
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0")


def version(name: str = "version") -> str:
    text = (ROOT / "fastjac" / "_version.py").read_text()
    return re.search(rf'^__{name}__ = "(.+)"$', text, re.MULTILINE).group(1)


def flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "off")


def output_of(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )
    return done.stdout + done.stderr


class NoCuda(Exception):
    """The reason why CUDA is not built."""


@dataclass
class Cuda:
    nvcc: str
    include: Path
    libraries: Path
    architectures: list[str]
    version: str

    def arch_flags(self) -> list[str]:
        flags = []
        for arch in self.architectures:
            number = arch.removesuffix("+PTX").replace(".", "")
            flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
            if arch.endswith("+PTX"):
                flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
        return flags


def find_cuda() -> Cuda:
    """The toolkit to build with; raises NoCuda with the reason if there is none."""
    nvcc = find_nvcc()
    try:
        release = re.search(r"release \S+, (V\S+)", output_of([nvcc, "--version"]))
        # The nvcc on PATH may be a script that starts another, so ask nvcc itself
        # where its toolkit is instead of looking beside the file found.
        dry_run = output_of([nvcc, "-v", "--dryrun", str(CSRC / "cuda" / "probe.cu")])
        known = output_of([nvcc, "--list-gpu-arch"])
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCuda(f"{nvcc} does not work: {error}") from error
    top = re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    root = Path(top.group(1).strip() if top else Path(nvcc).resolve().parents[1])
    root = root.resolve()
    targets = sorted(root.glob("targets/*"))
    include = first_with("cuda_runtime.h", [root / "include"], targets, "include")
    libraries = first_with(
        "libcudart_static.a", [root / "lib64", root / "lib"], targets, "lib"
    )
    if include is None or libraries is None:
        missing = "cuda_runtime.h" if include is None else "libcudart_static.a"
        raise NoCuda(f"{nvcc} found, but its toolkit {root} has no {missing}")
    architectures = wanted_architectures(re.findall(r"compute_(\d+)", known))
    text = release.group(1) if release else "unknown version"
    return Cuda(nvcc, include, libraries, architectures, f"nvcc {text}")


def find_nvcc() -> str:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(name)
        if home:
            nvcc = Path(home) / "bin" / "nvcc"
            if nvcc.exists():
                return str(nvcc)
            raise NoCuda(f"{name}={home} has no bin/nvcc")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise NoCuda("nvcc not found: neither CUDA_HOME is set nor is nvcc on PATH")
    return nvcc


def first_with(name: str, folders: list[Path], targets: list[Path], part: str):
    folders = folders + [target / part for target in targets]
    return next((folder for folder in folders if (folder / name).exists()), None)


def wanted_architectures(known: list[str]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or the default as far as the compiler knows it."""
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not text:
        chosen = [a for a in DEFAULT_ARCHITECTURES if a.replace(".", "") in known]
        return [*chosen[:-1], chosen[-1] + "+PTX"]
    chosen = [arch for arch in re.split(r"[;,\s]+", text) if arch]
    for arch in chosen:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", arch):
            sys.exit(
                f"TORCH_CUDA_ARCH_LIST={text!r}: cannot read {arch!r}; expected "
                'capabilities such as "8.0;9.0+PTX"'
            )
    return chosen


@dataclass
class Ninja:
    """Collects build edges and writes them as build.ninja."""

    folder: Path
    lines: list[str]

    def rule(self, name: str, command: str, depfile: bool = True) -> None:
        self.lines += [f"rule {name}", f"  command = {command}"]
        self.lines += [f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(self, out: str, rule: str, inputs: list[str], flags: str = "") -> str:
        escaped = " ".join(name.replace(" ", "$ ") for name in inputs)
        self.lines += [f"build {out}: {rule} {escaped}"]
        if flags:
            self.lines += [f"  flags = {flags}"]
        return out

    def run(self) -> None:
        write_if_changed(self.folder / "build.ninja", "\n".join(self.lines) + "\n")
        command = [ninja_program(), "-C", str(self.folder)]
        jobs = os.environ.get("MAX_JOBS", "").strip()
        if jobs:
            if not jobs.isdigit() or int(jobs) < 1:
                sys.exit(f"MAX_JOBS={jobs!r}: expected a whole number of at least 1")
            command += ["-j", jobs]
        sys.stdout.flush()
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            sys.exit(
                "fastjac: compiling the native module failed, see above. "
                "FASTJAC_NO_CUDA=1 builds without the CUDA part."
            )


def ninja_program() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        program = shutil.which("ninja")
        if program is None:
            sys.exit("fastjac: ninja is needed to build; `pip install ninja`")
        return program


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class BuildNative(build_ext):
    """Compiles csrc/ with ninja, incrementally, and puts the module in its place."""

    def build_extension(self, ext: Extension) -> None:
        folder = build_folder()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if flag("FASTJAC_NO_CUDA"):
                raise NoCuda("FASTJAC_NO_CUDA is set")
            cuda, why_not = find_cuda(), ""
        except NoCuda as reason:
            if flag("FORCE_CUDA"):
                sys.exit(f"FORCE_CUDA=1, but CUDA cannot be built: {reason}")
            cuda, why_not = None, str(reason)
        print(f"fastjac: CUDA {'by ' + cuda.nvcc if cuda else 'not built: ' + why_not}")
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        isas = list(ISA_FLAGS) if is_x86(compiler) else ["baseline"]
        write_config(folder / "build_config.h", compiler, isas, cuda, why_not)
        write_ninja(folder, compiler, isas, cuda).run()
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        place(folder / "_native.so", target)


def build_folder() -> Path:
    """One folder for every way to build: pip would give an editable install its own."""
    tag = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    chosen = os.environ.get("FASTJAC_BUILD_DIR") or ROOT / "build" / tag
    return Path(chosen).resolve() / "native"


def place(built: Path, target: Path) -> None:
    """Copies by rename, so that a process using the old module keeps it."""
    if not target.exists() or not filecmp.cmp(built, target, shallow=False):
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(built, temporary)
        os.replace(temporary, target)


def is_x86(compiler: list[str]) -> bool:
    return output_of([*compiler, "-dumpmachine"]).startswith("x86_64")


def write_config(path: Path, compiler, isas, cuda: "Cuda | None", why_not: str):
    values = {
        "VERSION": version(),
        "INTERFACE": version("interface"),
        "COMPILER": output_of([*compiler, "--version"]).splitlines()[0],
        "FLAGS": " ".join(CPU_FLAGS + shlex.split(os.environ.get("CXXFLAGS", ""))),
        "ISAS": " ".join(isas),
        "CUDA_COMPILER": cuda.version if cuda else "",
        "CUDA_ARCHITECTURES": " ".join(cuda.architectures) if cuda else "",
        "CUDA_WHY_NOT": why_not,
    }
    lines = ["// Written by setup.py.", "#pragma once"]
    lines += [f"#define FASTJAC_WITH_CUDA {int(cuda is not None)}"]
    for name, value in values.items():
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        lines += [f'#define FASTJAC_{name} "{quoted}"']
    write_if_changed(path, "\n".join(lines) + "\n")


def write_ninja(folder: Path, compiler, isas, cuda: "Cuda | None") -> Ninja:
    import pybind11

    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    includes = [
        *(f"-I{CSRC}", f"-I{folder}", f"-isystem{pybind11.get_include()}"),
        f"-isystem{sysconfig.get_path('include')}",
    ]
    compile_all = shlex.join([*compiler, *CPU_FLAGS, *includes, *extra])
    ninja = Ninja(folder, ["ninja_required_version = 1.5"])
    ninja.rule("cxx", f"{compile_all} $flags -MMD -MF $out.d -c $in -o $out")
    # The order of the objects matters, see csrc/cpu/dispatch.h: plain ones first, then
    # the instruction sets from the least to the greatest.
    objects = [
        ninja.edge("bindings.o", "cxx", [str(CSRC / "bindings.cpp")]),
        ninja.edge("dispatch.o", "cxx", [str(CSRC / "cpu" / "dispatch.cpp")]),
    ]
    kernels = [p for p in sorted(CSRC.glob("cpu/*.cpp")) if p.name != "dispatch.cpp"]
    cuda_link = []
    if cuda:
        objects += cuda_edges(ninja, cuda, compiler)
        cuda_link = [f"-L{cuda.libraries}", "-lcudart_static", "-ldl", "-lrt"]
    for isa in isas:
        flags = " ".join([*ISA_FLAGS[isa], f"-DFASTJAC_ISA={isa}"])
        for kernel in kernels:
            out = f"{kernel.stem}.{isa}.o"
            objects.append(ninja.edge(out, "cxx", [str(kernel)], flags))
    link = [*compiler, "-shared", "-fopenmp", "-Wl,--exclude-libs,ALL", "-s"]
    tail = [*cuda_link, *shlex.split(os.environ.get("LDFLAGS", ""))]
    ninja.rule(
        "link", f"{shlex.join(link)} $in {shlex.join(tail)} -o $out", depfile=False
    )
    ninja.edge("_native.so", "link", objects)
    return ninja


def cuda_edges(ninja: Ninja, cuda: Cuda, compiler: list[str]) -> list[str]:
    host = "-fPIC,-fvisibility=hidden,-Wall,-Wextra"
    command = [
        *(cuda.nvcc, "-O3", "-std=c++17", "-DNDEBUG", "-ccbin", compiler[-1]),
        *("-Xcompiler", host, "-cudart", "static", f"-I{CSRC}", *cuda.arch_flags()),
    ]
    # What ptxas says of registers and spills is kept beside the object, for the tests.
    compile_one = f"{shlex.join(command)} -Xptxas -v -MMD -MF $out.d -c $in -o $out"
    ninja.rule("nvcc", f"{compile_one} >$out.log 2>&1 || (cat $out.log; exit 1)")
    sources = sorted(CSRC.glob("cuda/*.cu"))
    return [ninja.edge(f"{s.stem}.cuda.o", "nvcc", [str(s)]) for s in sources]


if __name__ == "__main__":
    setup(ext_modules=[MODULE], cmdclass={"build_ext": BuildNative})
