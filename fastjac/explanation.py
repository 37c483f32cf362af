"""What `fastjac.explain` returns: as text, as a table, as data."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 80


@dataclass(frozen=True)
class Step:
    """One rule of the linearised network, in the order of the forward pass."""

    #: What it is: a class of fastjac.rules.
    rule: str
    #: How it runs, e.g. "gated, 14% of outputs live".
    runs: str
    #: The share of the outputs that is live where it runs gated, else None.
    density: float | None
    #: Shapes of the weights that it holds.
    weights: list[tuple[int, ...]]
    #: Elements of those weights that get a gradient.
    trainable: int
    #: Floating-point operations of all its passes over all rows, estimated.
    operations: int
    #: Bytes of all rows at its input, estimated; a chunk holds a part of them.
    bytes: int
    #: Its share of the time of a sweep; None unless it was profiled.
    time: float | None = None

    def details(self) -> str:
        """Return operations, bytes, time and weights in a few words."""
        parts = [f"{_si(self.operations)}FLOP", f"{_si(self.bytes)}B"]
        if self.time is not None:
            parts.append(f"{self.time:.0%} of time")
        if self.weights:
            shapes = ", ".join("x".join(map(str, shape)) for shape in self.weights)
            parts.append(f"weight {shapes}{'' if self.trainable else ' frozen'}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Missing:
    """An operation without a rule: why the whole penalty falls back."""

    #: Autograd's name of it.
    operation: str
    #: What is missing.
    reason: str
    #: The module and the line of code that it came from, where known.
    where: str
    #: What would make the fallback go away.
    advice: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; prints as text, `as_dict` gives data, rich a table."""

    #: "fused", or "autograd" for the fallback.
    backend: str
    #: Shape (N, K) of the logits.
    logits: tuple[int, int]
    #: Rows that are pulled for each sample: K, or fewer where the last layer is narrow.
    rows: int
    #: The rules, those near the input first; empty for the fallback.
    steps: list[Step]
    #: The operations without a rule; empty if fused.
    missing: list[Missing]
    #: What else to know, in sentences: how BatchNorm in training mode is taken.
    notes: list[str]
    #: Whether `regularized_loss` gets both gradients from one sweep on this network.
    one_sweep: bool = False

    @property
    def reason(self) -> str | None:
        """Why the fallback, and where in the model; None if fused."""
        if not self.missing:
            return None
        first = self.missing[0]
        return f"{first.operation} has no fused rule ({first.reason}){first.where}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain Python data, e.g. for JSON."""
        return {**asdict(self), "reason": self.reason}

    def __str__(self) -> str:
        notes = [_filled(f"Note: {note}", "  ") for note in self.notes]
        if self.missing:
            return "\n".join([self._title(), *map(_missing, self.missing), *notes])
        lines = [self._title()]
        for step in self.steps:
            lines.append(_filled(f"{step.rule}: {step.runs}", "  "))
            lines.append(_filled(step.details(), "      "))
        return "\n".join([*lines, *notes])

    def __rich__(self) -> Any:
        """Return the steps as a table of rich, for its console."""
        from rich.table import Table

        notes = "\n".join(f"Note: {note}" for note in self.notes) or None
        table = Table(
            title=self._title(), title_justify="left",
            caption=notes, caption_justify="left",
        )  # fmt: skip
        if self.missing:
            for name in ("operation", "why", "what to do"):
                table.add_column(name)
            for one in self.missing:
                table.add_row(one.operation, one.reason + one.where, one.advice)
            return table
        for name in ("rule", "runs", "weights"):
            table.add_column(name)
        for name in ("FLOP", "bytes", "time"):
            table.add_column(name, justify="right")
        for step in self.steps:
            shapes = ", ".join("x".join(map(str, shape)) for shape in step.weights)
            time = "" if step.time is None else f"{step.time:.0%}"
            table.add_row(
                step.rule, step.runs, shapes, _si(step.operations), _si(step.bytes),
                time,
            )  # fmt: skip
        return table

    def _title(self) -> str:
        samples, classes = self.logits
        if self.missing:
            return (
                f"falls back to autograd ({classes} backward passes) because of "
                f"{_count(len(self.missing), 'operation')} without a fused rule"
            )
        fewer = "" if self.rows == classes else f" instead of {classes}"
        return (
            f"fused: {_count(self.rows, 'row')}{fewer} for each of "
            f"{_count(samples, 'sample')} through {_count(len(self.steps), 'step')}, "
            "input first"
        )


def _missing(one: Missing) -> str:
    """Return why, where, and what to do; a line of code is not broken."""
    text = f"  {one.operation}: {one.reason}{one.where}"
    return f"{text}\n{_filled(one.advice, '      ')}"


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=" " * 6,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _si(number: float) -> str:
    """Return a number in two or three digits with its prefix: ``1.2 G``."""
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while number >= 999.5 and (larger := next(prefixes, None)) is not None:
        number, prefix = number / 1000, larger
    digits = 1 if prefix and number < 9.95 else 0
    return f"{number:.{digits}f} {prefix}"
