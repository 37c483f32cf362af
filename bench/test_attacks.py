"""DeepFool on the paper's MNIST net, 1,000 test digits: fastjac and its peers.

    pytest bench/test_attacks.py --benchmark-only -s

Asserts what bench/deepfool.py measures, where the peers are installed; see there.
FASTJAC_BENCH_DIGITS=N takes N test digits instead of 1,000. On a GPU, if torch sees
one, all 10,000 are to take under a second.
"""

from __future__ import annotations

import copy
import os

import deepfool
import pytest
import torch
from torch import Tensor, nn

from fastjac import attacks

DIGITS = int(os.environ.get("FASTJAC_BENCH_DIGITS", "1000"))
ROUNDS = 3


@pytest.fixture(scope="module")
def mnist_net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """The trained net, and all test images."""
    folder = deepfool.mnist_folder()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set FASTJAC_DATA)")
    return deepfool.mnist(request.config.cache.mkdir("fastjac-bench"))


@pytest.fixture
def digits(mnist_net) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained net, test digits, and the classes that the net gives them."""
    net, images = mnist_net[0], mnist_net[1][:DIGITS]
    with torch.no_grad():
        return net, images, net(images).argmax(1)


def measured(names, digits, rounds: int) -> list[deepfool.Result]:
    for contestant in deepfool.CONTESTANTS:
        if contestant.name in names:
            try:
                deepfool.imported(contestant)
            except ImportError as error:
                pytest.skip(f"{contestant.name} is not installed: {error}")
    runs = []
    for _ in range(rounds):
        runs += deepfool.one_round(names, *digits, deepfool.SLOW_DIGITS)
    found = deepfool.results(runs)
    print(f"\n{deepfool.table(found)}")
    return found


def ratio(found: list[deepfool.Result], benchmark) -> float:
    """How much longer the fastest peer takes for a digit."""
    ours, *peers = found
    best = min(peer.per_digit for peer in peers) / ours.per_digit
    benchmark.extra_info.update({r.name: r.seconds for r in found}, ratio=best)
    return best


@pytest.mark.benchmark(group="deepfool, MNIST net")
def test_at_least_4_5_times_as_fast_as_the_fastest_peer(benchmark, digits):
    names = ["fastjac", "adv-lib", "adv-lib, 128s", "foolbox"]
    found = benchmark.pedantic(
        measured, args=(names, digits, ROUNDS), rounds=1, iterations=1
    )
    ours, *peers = found
    for peer in peers:
        if peer.digits == ours.digits:
            assert ours.fooled >= peer.fooled - 0.002
            assert ours.distance <= 1.02 * peer.distance
    assert ratio(found, benchmark) >= 4.5


@pytest.mark.benchmark(group="deepfool, MNIST net, image by image")
@pytest.mark.parametrize("peer", ["torchattacks", "ART"])
def test_at_least_20_times_as_fast_as_image_by_image(benchmark, digits, peer):
    found = benchmark.pedantic(
        measured, args=(["fastjac", peer], digits, 1), rounds=1, iterations=1
    )
    assert ratio(found, benchmark) >= 20


@pytest.mark.benchmark(group="deepfool, MNIST net, GPU")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_ten_thousand_digits_take_under_a_second_on_a_gpu(benchmark, mnist_net):
    net, images = copy.deepcopy(mnist_net[0]).cuda(), mnist_net[1].cuda()

    def attack() -> attacks.DeepFoolResult:
        found = attacks.deepfool(net, images, bounds=(0, 1))
        torch.cuda.synchronize()
        return found

    found = benchmark.pedantic(attack, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    assert len(images) == 10_000 and found.success.float().mean() > 0.99
    assert benchmark.stats.stats.median < 1.0
