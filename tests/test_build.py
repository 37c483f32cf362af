"""How fastjac is built, and what it says of its build."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastjac

ROOT = Path(__file__).resolve().parents[1]


# ---- what it says of itself


def test_build_info_says_everything_and_json_can_write_it() -> None:
    info = fastjac.build_info()
    assert info.version == fastjac.__version__
    assert info.torch == torch.__version__
    assert info.threads == torch.get_num_threads()
    assert json.loads(json.dumps(info.as_dict()))["version"] == info.version
    text = str(info)
    for word in ("fastjac:", "compiler:", "instruction sets:", "CUDA:", "torch:"):
        assert word in text
    if info.native:
        assert info.isa in info.isas
        assert f"{info.isa} (in use)" in text
        assert "-O3" in str(info.flags) and "fast-math" not in str(info.flags)
    if not info.cuda_architectures:
        assert info.cuda_why_not


def test_the_command_line_reports_the_build() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastjac", "info"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert fastjac.__version__ in done.stdout


# ---- setup.py


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with no CUDA setting in the environment."""
    for name in (
        *("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "FASTJAC_NO_CUDA"),
        *("TORCH_CUDA_ARCH_LIST", "MAX_JOBS"),
    ):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("fastjac_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastjac_setup", module)
    spec.loader.exec_module(module)
    return module


def make_toolkit(folder: Path, known: str = "80 90 100 120") -> Path:
    """A toolkit as small as it can be, found through a script that stands on PATH."""
    for name in ("bin", "include", "lib64", "path"):
        (folder / name).mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    (folder / "lib64" / "libcudart_static.a").touch()
    archs = "\\n".join(f"compute_{number}" for number in known.split())
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        f"""#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
*--dryrun*) echo "#$ TOP={folder}/bin/.." >&2 ;;
*--list-gpu-arch*) printf '{archs}\\n' ;;
esac
"""
    )
    wrapper = folder / "path" / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    nvcc.chmod(0o755)
    wrapper.chmod(0o755)
    return folder


def test_the_toolkit_is_found_behind_a_wrapper_script(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_toolkit(tmp_path)
    monkeypatch.setenv("PATH", str(folder / "path"), prepend=os.pathsep)
    cuda = setup_py.find_cuda()
    assert cuda.nvcc == str(folder / "path" / "nvcc")
    assert cuda.include == folder / "include"
    assert cuda.libraries == folder / "lib64"
    assert cuda.version == "nvcc V13.0.88"
    assert cuda.architectures == ["8.0", "9.0", "10.0+PTX"]
    assert cuda.arch_flags()[-4:] == [
        *("-gencode", "arch=compute_100,code=sm_100"),
        *("-gencode", "arch=compute_100,code=compute_100"),
    ]


def test_cuda_home_comes_before_path(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = make_toolkit(tmp_path / "on_path")
    at_home = make_toolkit(tmp_path / "home", known="80 90")
    monkeypatch.setenv("PATH", str(on_path / "path"), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_HOME", str(at_home))
    cuda = setup_py.find_cuda()
    assert cuda.libraries == at_home / "lib64"
    assert cuda.architectures == ["8.0", "9.0+PTX"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        ("9.0a 12.0", ["9.0a", "12.0"]),
        ("8.6, 8.9", ["8.6", "8.9"]),
    ],
)
def test_torch_cuda_arch_list_is_honoured(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str, expected: list
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert setup_py.wanted_architectures(["80", "90"]) == expected


def test_an_unreadable_arch_list_is_an_error(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="cannot read 'Hopper'; expected capabilities"):
        setup_py.wanted_architectures(["80", "90"])


def test_a_toolkit_without_its_library_is_named(
    setup_py: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_toolkit(tmp_path)
    (folder / "lib64" / "libcudart_static.a").unlink()
    monkeypatch.setenv("CUDA_HOME", str(folder))
    with pytest.raises(setup_py.NoCuda, match="has no libcudart_static.a"):
        setup_py.find_cuda()


def build_ext(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    removed = ("CUDA_HOME", "CUDA_PATH", "FORCE_CUDA", "FASTJAC_NO_CUDA", "MAX_JOBS")
    base = {k: v for k, v in os.environ.items() if k not in removed}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path],
        env={**base, "FASTJAC_BUILD_DIR": str(tmp_path / "objects"), **env},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_force_cuda_without_nvcc_is_an_error_with_the_reason(tmp_path: Path) -> None:
    done = build_ext(tmp_path, FORCE_CUDA="1", PATH=str(tmp_path))
    assert done.returncode != 0
    assert "FORCE_CUDA=1, but CUDA cannot be built: nvcc not found" in done.stderr
    done = build_ext(tmp_path, FORCE_CUDA="1", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert f"CUDA_HOME={tmp_path} has no bin/nvcc" in done.stderr


def test_max_jobs_must_be_a_number(tmp_path: Path) -> None:
    done = build_ext(tmp_path, FASTJAC_NO_CUDA="1", MAX_JOBS="many")
    assert done.returncode != 0
    assert "MAX_JOBS='many': expected a whole number of at least 1" in done.stderr


def test_a_compiler_error_ends_the_build_with_a_hint(tmp_path: Path) -> None:
    done = build_ext(tmp_path, FASTJAC_NO_CUDA="1", CXXFLAGS="-include /no/such/file")
    assert done.returncode != 0
    assert "/no/such/file" in done.stdout + done.stderr
    assert "compiling the native module failed" in done.stderr


def test_the_source_distribution_can_build_and_test_itself(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    wanted = {
        *("setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE"),
        *("fastjac/py.typed", "fastjac/native.py", "tests/cuda_standin/runtime.h"),
        *(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*")),
    }
    assert wanted <= names
    assert not any(name.endswith((".so", ".pyc")) for name in names)
