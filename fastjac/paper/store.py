"""Results on the disk: one JSON line a finished job, written so that none is lost.

A line is appended in one write and flushed to the disk before the job counts as done. A
crash can leave half a line at the end of the file: it is dropped when the file is next
opened, and its job runs again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastjac.checkpoint import CheckpointError


class Store:
    """The results of a run, by job id.

    Args:
        path: the file of JSON lines; created when the first result is added.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(Path(folder) / "results.jsonl")
        ...     store.add({"id": "a1", "accuracy": 0.98})
        ...     sorted(Store(store.path).results)
        ['a1']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self.damaged = 0
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                self._read(line)

    def _read(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            record = json.loads(line)
            self.results[record["id"]] = record
        except (ValueError, KeyError, TypeError):
            self.damaged += 1

    def add(self, record: dict[str, Any]) -> None:
        """Append a result; it is on the disk when this returns.

        Raises:
            CheckpointError: no room or no permission; the file is as it was.
        """
        line = json.dumps(record, allow_nan=False, sort_keys=True).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                _drop_torn_line(file)
                end = file.seek(0, os.SEEK_END)
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), end)
                    raise
        except OSError as error:
            raise CheckpointError(
                f"cannot add a result to {self.path}: {error.strerror or error}; those"
                " before it are kept. Make room and run the same command again"
            ) from error
        self.results[record["id"]] = record


def _drop_torn_line(file: Any) -> None:
    """Cut off what a crash left behind the last whole line."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end:
        begin = max(0, end - 4096)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end < size:
        file.truncate(end)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Context in which no other run may use the folder.

    Raises:
        CheckpointError: another process is using it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {folder}: {error.strerror or error}; choose another --out"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"another run is using {folder}: wait for it, or choose another --out"
            ) from None
        yield
