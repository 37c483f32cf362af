"""How a worker tells how far it is, and hears that it should stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Report = Callable[[str, int, int], None]
"""``report(phase, done, total)``."""


class Stopped(KeyboardInterrupt):
    """Raised in a job when the run is being interrupted; what was done is saved."""


class Watched:
    """A loader that reports each batch and stops when asked to.

    Args:
        loader: gives batches.
        phase: what they are for, in the progress bar.
        report: told about each batch.
        stop: returns whether to stop.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        phase: str,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        self.loader, self.phase = loader, phase
        self.report, self.stop = report, stop

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        told = 0.0
        total = len(self)
        for done, batch in enumerate(self.loader):
            if time.monotonic() - told > 0.2 or done + 1 == total:
                told = time.monotonic()
                self.report(self.phase, done, total)
            if self.stop():
                interrupt()
            yield batch


def interrupt() -> None:
    """Stop here, or after the training step in progress, which then saves itself."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise Stopped("stopped")
