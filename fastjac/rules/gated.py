"""A convolution or linear layer and the gates and max pool behind it, natively.

Behind such a layer stand gates and perhaps a max pool, so that only some of its outputs
carry a cotangent: one in four after a 2x2 pool, fewer after the ReLU, fewer still under
dropout. The list of the live outputs is built once for all rows of a sample, and all
three passes touch live outputs only. Rows travel in the pooled domain: the unpooled
tensor is never written. Of many rows a convolution right above a gated layer without a
pool touches live inputs only as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac import native_conv, native_conv_gpu, workspace
from fastjac.native_conv_gpu import Parts
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples, Sum, Sums
from fastjac.rules.layout import InputLayout, Packed, padded
from fastjac.rules.linear import Linear
from fastjac.rules.live import Live
from fastjac.rules.outputs import Reader, room_for
from fastjac.rules.pooling import Average, Route

#: The largest share of live inputs, over that of the lanes which hold rows, at which
#: pulling to them alone beats pulling to all (bench/NOTES.md).
MOST_LIVE_BELOW = 0.8


class GatedLayer(Rule):
    """``v = pool(gate o (u * W))``, then perhaps another gate.

    ``layer`` is the dense rule whose weight it is; a linear layer is a convolution of
    one pixel and one tap. ``live`` lists what the gates and the pool let through, and
    ``made_of`` names the rules that this one stands for.
    """

    moves = False

    def __init__(self, layer: Rule, packed: Packed, live: Live, made_of: str) -> None:
        self.layer = layer
        self.weights, self.biases = layer.weights, layer.biases
        self.elements = layer.elements
        self.packed, self.live = packed, live
        self._made_of = made_of
        #: What the next rule up is, and so which layout of tangents it wants.
        self.reader = Reader.OTHER
        #: In how few bits rows are held in here, and whether the gated layer right
        #: below, or right above, takes them so; None for those of the weights.
        self.held: torch.dtype | None = None
        self.held_below = self.held_above = False
        #: The live outputs of the gated layer right below, where they are the inputs.
        self.below: Live | None = None
        self._gathered: tuple[Tensor, Tensor] | None = None
        #: What was gathered times ``ones``, added up but over channels, (C,).
        self._bias_gradient: Tensor | None = None
        self._layouts: dict[tuple[int, bool], InputLayout] = {}

    def layout(self, count: int) -> InputLayout:
        """Return the layout of this many rows at the input."""
        below = None if isinstance(self.layer, Linear) else self.below
        live_only = below is not None and below.read_alone(count)
        if (count, live_only) not in self._layouts:
            layout = InputLayout(self.packed, count, live_only)
            self._layouts[count, live_only] = layout
        return self._layouts[count, live_only]

    def pull(self, rows: Tensor) -> Tensor:
        if self.below is not None and isinstance(self.layer, Linear):
            pulled = self._pull_to_live(rows, self.below)
            if pulled is not None:
                return pulled
        layout = self.layout(rows.shape[0])
        pulled = layout.empty(self._hold(rows))
        self.run_pass("pull", layout, self._gather(rows), pulled)
        return pulled if self.held_below else self._let_go(pulled)

    def _pull_to_live(self, rows: Tensor, below: Live) -> Tensor | None:
        """Pull to the inputs that the layer below has alive; None if it does not pay.

        The other inputs hold anything: only that layer reads the rows, and only these.
        """
        stride = padded(rows.shape[0], self.packed.lanes)
        if below.share() > MOST_LIVE_BELOW * rows.shape[0] / stride:
            return None
        weight = self.packed.transposed()
        if weight is None:
            return None
        samples = rows.shape[1]
        compact = workspace.empty((self.live.entries, stride), rows)
        self.live.gather(rows, compact)
        pulled = workspace.empty((samples, weight.shape[0], stride), rows)
        native_conv.live_pull(
            self.live, below, weight=weight, compact=compact, out=pulled
        )
        return pulled[..., : rows.shape[0]].permute(2, 0, 1)

    def push(self, tangents: Tensor) -> Tensor:
        layout = self.layout(tangents.shape[0])
        size = (self.live.entries, layout.compact_stride)
        return self._push(tangents, workspace.empty(size, self._hold(tangents)))

    def push_adding(
        self, tangents: Tensor, rows: Tensor, sums: Sums, own: bool, spare: bool
    ) -> Tensor:
        (total,) = sums
        if total is None:
            return self.push(tangents)
        # Once for both passes; what is laid out already is not copied again.
        layout = self.layout(tangents.shape[0])
        tangents = layout.of(self._hold(tangents))
        compact = self._add_gradient(rows, tangents, total)
        return self._push(tangents, compact, rows if spare else None)

    def _push(
        self, tangents: Tensor, compact: Tensor, room: Tensor | None = None
    ) -> Tensor:
        """Push by way of ``compact``, memory for the live entries, to ``room``."""
        count, samples = tangents.shape[:2]
        layout = self.layout(count)
        tangents = self._hold(tangents)
        self.run_pass("push", layout, compact, layout.of(tangents))
        reader = self.reader
        if reader is Reader.LIVE and not self.live.read_alone(count):
            reader = Reader.GATED
        shape = (count, samples, *self.live.out_shape[1:])
        pushed = room_for(reader, shape, self.packed, tangents, room)
        bias = None if self.ones is None else self.biases[0]
        ones = None if bias is None else self.ones
        self.live.scatter(compact, pushed, bias, ones, live_only=reader is Reader.LIVE)
        return pushed if self.held_above else self._let_go(pushed)

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is not None:
            self._add_gradient(rows, tangents, total)

    def bias_gradients(self, rows: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is not None and self.ones is not None:
            self._gather(rows)
            assert self._bias_gradient is not None
            total.add(self._bias_gradient)
            self._bias_gradient = None

    def _add_gradient(self, rows: Tensor, tangents: Tensor, total: Sum) -> Tensor:
        """Add the gradient; return the memory of the live entries' rows, now free."""
        layout = self.layout(rows.shape[0])
        compact = self._gather(rows)
        self.run_pass("weight", layout, compact, layout.of(self._hold(tangents)), total)
        self._gathered = None
        return compact

    def narrow(self, samples: Samples) -> GatedLayer:
        live = self.live.narrow(samples)
        narrowed = GatedLayer(self.layer, self.packed, live, self._made_of)
        narrowed.reader, narrowed.held = self.reader, self.held
        narrowed._layouts = self._layouts
        narrowed.held_below, narrowed.held_above = self.held_below, self.held_above
        if self.below is not None:
            narrowed.below = self.below.narrow(samples)
        return narrowed

    def release(self) -> None:
        super().release()
        self._gathered = self._bias_gradient = None

    @property
    def multiplications(self) -> int:
        return round(self.live.expected_density() * self.layer.multiplications)

    @property
    def name(self) -> str:
        return self._made_of

    def density(self) -> float:
        return self.live.density()

    def describe(self) -> str:
        held = "" if self.held is None else f", rows in {str(self.held)[6:]}"
        return f"gated, {self.live.density():.0%} of outputs live{held}"

    def _hold(self, rows: Tensor) -> Tensor:
        return rows if self.held is None else rows.to(self.held)

    def _let_go(self, rows: Tensor) -> Tensor:
        return rows.to(self.packed.dtype)

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the rows of the live outputs; pull's are kept for the gradient."""
        if self._gathered is not None and self._gathered[0] is rows:
            return self._gathered[1]
        stride = self.layout(rows.shape[0]).compact_stride
        held = self._hold(rows)
        compact = workspace.empty((self.live.entries, stride), held)
        if self.ones is not None and self.biases[0] is not None:
            # Not the chunk's memory: a sum over chunks may keep it.
            self._bias_gradient = held.new_empty(self.live.out_shape[1])
            self.live.gather(held, compact, self.ones, self._bias_gradient)
        else:
            self.live.gather(held, compact)
        self._gathered = rows, compact
        return compact

    def run_pass(
        self,
        direction: str,
        layout: InputLayout,
        compact: Tensor,
        input: Tensor,
        total: Sum | None = None,
    ) -> None:
        """Run a pass; the pass "weight" adds to ``total``."""
        weight = self.packed.weight(layout.by_window)
        if self.packed.on_gpu:
            parts = None
            if total is not None:
                parts = total.waiting(
                    lambda: Parts.of(self.live, weight, self.packed.shape)
                )
            native_conv_gpu.gated_conv(
                direction,
                self.live,
                weight=weight,
                compact=compact,
                input=input,
                row_count=layout.count,
                parts=parts,
            )
            return
        native_conv.gated_conv(
            direction,
            self.live,
            weight=weight,
            compact=compact,
            input=input,
            layout=layout,
            inputs=self.below if layout.live_only else None,
            weight_gradient=(
                None if total is None else total.buffer(weight, self.packed.unpacked)
            ),
        )


def made_of(
    gate: Gate | None, pool: Route | Average | None, behind: Gate | None
) -> str:
    """Name what stands behind a layer, for `explain`."""
    kind = "MaxPool" if isinstance(pool, Route) else "AveragePool"
    names = (("Gate", gate), (kind, pool), ("Gate", behind))
    return "".join(f" + {name}" for name, rule in names if rule is not None)
