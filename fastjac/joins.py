"""Where rows, or tangents, meet: sums at values that several operations share.

They are added up in place wherever nobody else looks at that memory, and are let go
as soon as their last reader has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from fastjac import workspace
from fastjac.rules.base import repeats


class Joins:
    """What each value has received so far.

    A tensor is *own* if no value, no kept row and no rule holds its memory too.

    Args:
        readers: the values, as often as they will be read.
    """

    def __init__(self, readers: Iterable[Hashable]) -> None:
        self._readers = Counter(readers)
        self._left = self._readers.copy()
        self._sums: dict[Hashable, Tensor] = {}
        self._own: set[Hashable] = set()

    def take(self, value: Hashable) -> tuple[Tensor | None, bool]:
        """Return a value's sum to one of its readers, who may overwrite it if own.

        None is returned if it has received nothing.
        """
        self._left[value] -= 1
        own = value in self._own and self._readers[value] == 1
        if self._left[value] > 0:
            return self._sums.get(value), own
        self._own.discard(value)
        return self._sums.pop(value, None), own

    def get(self, value: Hashable) -> Tensor:
        """Return a value's sum; it stays."""
        return self._sums[value]

    def open(self, value: Hashable) -> Tensor | None:
        """Return a value's sum if it may be added to in place."""
        return self._sums[value] if value in self._own else None

    def add(self, value: Hashable, term: Tensor, own: bool) -> None:
        """Add a term, whose memory the sum may keep if it is own."""
        own = own and not repeats(term)
        total = self._sums.get(value)
        if total is None:
            self._sums[value] = term
        elif value in self._own:
            total.add_(term)
            return
        elif own:
            self._sums[value] = term.add_(total)
        else:
            self._sums[value] = torch.add(total, term, out=workspace.empty_as(total))
            own = True
        if own:
            self._own.add(value)
