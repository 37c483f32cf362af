"""`pytest bench/ --benchmark-only`: one group a network and penalty.

Every contestant is checked for equal value and gradient before it is timed.
"""

from __future__ import annotations

import time

import pytest
from contestants import GROUPS
from measure import check, stepper
from nets import NETS

SECONDS = 3.0  # for the rounds of one contestant


@pytest.mark.parametrize("net", ["digits", "mnist", "cifar"])
@pytest.mark.parametrize(
    "group, name", [(group, name) for group in GROUPS for name in GROUPS[group]]
)
def test_step(benchmark, net: str, group: str, name: str) -> None:
    samples = NETS[net].samples[0]
    benchmark.group = f"{group} penalty, {net} net, N = {samples}, K = 10, whole step"
    contestant = GROUPS[group][name]
    model = NETS[net].build()
    x, y = NETS[net].batch(samples)
    error = check(contestant, model, x)
    benchmark.extra_info.update(
        value_error=error.value, gradient_error=error.gradient, samples=samples
    )
    run = stepper(contestant.total, model, x, y)
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    rounds = max(3, min(50, int(SECONDS / once)))
    benchmark.pedantic(run, rounds=rounds, iterations=1)
