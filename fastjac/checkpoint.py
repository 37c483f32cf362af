"""Files that are either the old version or the new one, never half of one.

A checkpoint is written to a temporary file beside it, flushed to the disk, and renamed
over the old one: a crash, a full disk or a pulled plug leaves the last good file. Files
are read with ``weights_only=True``, so that opening one never runs code from it.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

VERSION = 1

_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
)
"""What torch.load raises for damaged and for foreign files."""


class CheckpointError(RuntimeError):
    """A checkpoint or model file that cannot be read, written or used here."""


def write_atomic(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at ``path`` by what ``write`` puts out, or leave it as it is.

    Args:
        path: file to replace or create; its folder is created if needed.
        write: called once with a binary file open for writing.

    Raises:
        CheckpointError: the file cannot be written (no room, no permission).

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> target = Path(folder.name) / "note"
        >>> write_atomic(target, lambda file: file.write(b"kept"))
        >>> target.read_bytes()
        b'kept'
        >>> folder.cleanup()
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch.save reports the system's error as the context of one of its own.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        raise CheckpointError(
            f"cannot write {path}: {getattr(reason, 'strerror', None) or error}; what"
            " was there before is unchanged. Make room or choose another place"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: str | Path, kind: str, payload: dict[str, Any]) -> None:
    """Write ``payload`` (tensors and plain Python values) atomically.

    Args:
        path: file to replace or create.
        kind: what the file holds, such as ``"model"``; :func:`load` checks it.
        payload: tensors, numbers, strings, and lists, tuples and dicts of them.
    """
    content = {"fastjac": kind, "version": VERSION, **payload}
    write_atomic(path, lambda file: torch.save(content, file))


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Read a file written by :func:`save`, on the CPU.

    Raises:
        CheckpointError: no such file, a damaged one, one of another kind, or one that
            a newer fastjac wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no {kind} file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"cannot read {path} as a {kind} file: it is damaged, cut short, or not"
            f" written by fastjac ({type(error).__name__})"
        ) from error
    found = content.get("fastjac") if isinstance(content, dict) else None
    if found != kind:
        raise CheckpointError(
            f"{path} is not a {kind} file of fastjac"
            + (f" but a {found} file" if found else "")
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format {content['version']}, this fastjac reads up to"
            f" {VERSION}: upgrade fastjac"
        )
    return content


def rng_state() -> dict[str, Any]:
    """Return the state of torch's, NumPy's and Python's global generators.

    CUDA generators are included where there are any. The result can be saved with
    :func:`save` and put back with :func:`set_rng_state`.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(1)
        >>> set_rng_state(state)
        >>> bool(torch.rand(1) == first)
        True
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(name),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(numbers), next_gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state((name, words, position, has_gauss, gauss))
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers), next_gauss))
