"""The progress bar of a training run."""

from __future__ import annotations

import warnings
from typing import Any

from fastjac.harden.records import Position


class Bar:
    """A tqdm bar over all steps with loss, penalty and accuracy."""

    def __init__(self, name: str | None, total: int | None, done: int) -> None:
        self._bar: Any = None
        self._name = name
        if name is None:
            return
        try:
            from tqdm.auto import tqdm
        except ImportError:
            warnings.warn(
                "progress is not shown: tqdm is not installed (pip install tqdm, or"
                " progress=False)",
                stacklevel=4,
            )
            return
        self._bar = tqdm(total=total, initial=done, unit="step", desc=name)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, position: Position, values: list[float]) -> None:
        """Draw a finished step."""
        if self._bar is None:
            return
        self._bar.set_description(f"{self._name} {position.epoch + 1}", refresh=False)
        self._bar.set_postfix(
            loss=f"{values[0]:.3f}",
            penalty=f"{values[2]:.3g}",
            accuracy=f"{position.correct / position.samples:.3f}",
            refresh=False,
        )
        self._bar.update()
