"""Ctrl-C that lets the step in progress finish, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the step in progress was finished and saved.

    Attributes:
        checkpoint: the file to resume from, or None if no checkpoint was asked for.
    """

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class InterruptGuard:
    """Context in which the first Ctrl-C only raises a flag.

    A second Ctrl-C interrupts at once, as it does outside. In threads other than the
    main one Python delivers no signals, and the guard does nothing.

    Example:
        >>> with InterruptGuard() as guard:
        ...     signal.raise_signal(signal.SIGINT)
        ...     guard.asked()
        True
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def asked(self) -> bool:
        """Return whether Ctrl-C was pressed since the context was entered."""
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
